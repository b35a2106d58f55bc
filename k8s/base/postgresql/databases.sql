-- As the superuser, any number of times: creates what is missing, and sets the passwords that the Secret has now.
\set ON_ERROR_STOP on
\getenv mlflow_password MLFLOW_PASSWORD
\getenv optuna_password OPTUNA_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', name)
    FROM unnest(ARRAY['mlflow', 'optuna']) AS name WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE mlflow PASSWORD :'mlflow_password';
ALTER ROLE optuna PASSWORD :'optuna_password';
SELECT format('CREATE DATABASE %I OWNER %I', name, name)
    FROM unnest(ARRAY['mlflow', 'optuna']) AS name WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
REVOKE ALL ON DATABASE mlflow, optuna, postgres FROM PUBLIC;
