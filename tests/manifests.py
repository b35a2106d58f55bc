"""The overlays of k8s/ as objects, and the rules that have to hold for them.

Run as a program, it checks every overlay against the rules and against versions of Kubernetes.
"""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import kubectl
import yaml

K8S = Path(__file__).parents[1] / "k8s"
OVERLAYS = ("local", "gpu")
TEAM = "team-a"  # the overlay of a team, and its namespace, which has no services
VERSIONS = ("1.27", "1.29", "1.31", "1.33", "1.35", "1.37")
SERVICES, PIPELINES = "taylorglo", "kubeflow"
TEMPLATED = ("Deployment", "StatefulSet", "Job", "CronJob")
VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}  # kinds that are allowed
CONTEXT = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

Object = dict[str, Any]


def render(
    overlay: str, patch: Path | None = None, values: dict[str, str] | None = None
) -> list[Object]:
    """Return the objects that ``kubectl apply -k`` would send.

    Args:
        overlay: name of the overlay.
        patch: a kustomization that is laid over the overlay, which it calls ``overlay``.
        values: of the secrets of the overlay's example; each is ``secret-NAME`` unless given.
    """
    text = _rendered(overlay, patch, values) if patch or values else _rendered_as_it_is(overlay)
    return list(yaml.load_all(text, yaml.CSafeLoader))


@functools.cache
def _rendered_as_it_is(overlay: str) -> str:
    return _rendered(overlay, None, None)


def _rendered(overlay: str, patch: Path | None, values: dict[str, str] | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(K8S, Path(folder) / "k8s"))
        target = root / "overlays" / overlay
        example = (target / "secrets/example.env").read_text()
        lines = [
            f"{name}={(values or {}).get(name, 'secret-' + name)}"
            for name in re.findall(r"^(\w+)=", example, re.M)
        ]
        (target / "secrets/secrets.env").write_text("\n".join(lines))
        for path in target.glob("secrets/example.*.json"):
            shutil.copy(path, path.with_name(path.name.removeprefix("example.")))
        if patch:
            shutil.copytree(patch, root / "overlays/patched")
            (root / "overlays/patched/overlay").symlink_to(target)
            target = root / "overlays/patched"
        program = kubectl.find()
        assert program, "no kubectl"
        process = subprocess.run(
            [program, "kustomize", str(target)], capture_output=True, text=True, check=False
        )
        if process.returncode:
            raise RuntimeError(process.stderr.replace(str(root), "k8s"))
        return process.stdout


def name_of(thing: Object) -> str:
    """Return ``Kind NAMESPACE/NAME``."""
    meta = thing["metadata"]
    return f"{thing['kind']} {meta.get('namespace', '')}/{meta['name']}"


def pods(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Yield every object that makes pods, with its pod template."""
    for thing in objects:
        if thing["kind"] in TEMPLATED:
            yield thing, _job_spec(thing)["template"]


def containers(template: Object) -> list[Object]:
    """Return all containers of a pod."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def schema_faults(objects: list[Object], version: str) -> list[str]:
    """Return in words where an object is not valid in this version of Kubernetes."""
    from kubernetes_validate import SchemaNotFoundError, ValidationError, utils

    faults = []
    # Otherwise the definitions of all kinds, which are megabytes, are read anew for each object.
    with mock.patch.object(utils, "schema_contents", functools.cache(utils.schema_contents)):
        for thing in objects:
            try:
                utils.validate(thing, version, strict=True)
            except (ValidationError, SchemaNotFoundError) as error:
                faults.append(f"{name_of(thing)}: {error.message}")
    return faults


def faults(objects: list[Object]) -> list[str]:
    """Return in words where an object breaks a rule of the project."""
    messages = faults_of_a_team(objects)
    for thing in objects:
        messages += [f"{name_of(thing)}: {fault}" for fault in _selector_faults(thing, objects)]
    for policy_type in ("Ingress", "Egress"):
        if not any(_denies_by_default(thing, policy_type) for thing in objects):
            messages.append(f"namespace {SERVICES}: {policy_type} is not denied by default")
    return messages


def faults_of_a_team(objects: list[Object]) -> list[str]:
    """Return in words where an object breaks a rule for pods and roles."""
    messages = []
    for thing, template in pods(objects):
        for check in (_pod_faults(thing, template), _reference_faults(thing, template, objects)):
            messages += [f"{name_of(thing)}: {fault}" for fault in check]
    for thing in objects:
        if thing["kind"] in ("Role", "ClusterRole"):
            messages += [f"{name_of(thing)}: {fault}" for fault in _role_faults(thing)]
    return messages


def _pod_faults(thing: Object, template: Object) -> Iterator[str]:
    spec = template["spec"]
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not isinstance(context.get("runAsUser"), int):
        yield "should be runAsNonRoot, with a numeric user"
    if context.get("runAsUser") == 0:
        yield "runs as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp profile should be RuntimeDefault"
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    if spec.get("automountServiceAccountToken") is not False:
        yield "mounts a token of Kubernetes' API"
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume['name']} is of a kind that is not allowed"
    for container in containers(template):
        for fault in _container_faults(container):
            yield f"container {container['name']} {fault}"
    if thing["kind"] in ("Deployment", "StatefulSet"):
        for container in spec["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"container {container['name']} has no {probe}"
    elif not any(s.get("activeDeadlineSeconds") for s in (spec, _job_spec(thing))):
        yield "may run for ever"


def _reference_faults(thing: Object, template: Object, objects: list[Object]) -> Iterator[str]:
    spec = template["spec"]
    namespace = thing["metadata"]["namespace"]
    known = {name_of(other): other for other in objects}
    account = known.get(f"ServiceAccount {namespace}/{spec.get('serviceAccountName')}")
    if account is None:
        yield f"there is no ServiceAccount {spec.get('serviceAccountName')!r}"
    for secret in (account or {}).get("imagePullSecrets", []):
        if f"Secret {namespace}/{secret['name']}" not in known:
            yield f"there is no Secret {secret['name']!r} to pull images with"
    for kind, name, key in _references(spec):
        referred = known.get(f"{kind} {namespace}/{name}")
        if referred is None:
            yield f"there is no {kind} {name!r}"
        elif key and key not in {**referred.get("data", {}), **referred.get("stringData", {})}:
            yield f"{kind} {name!r} has no key {key!r}"


def _job_spec(thing: Object) -> Object:
    """Return the part of an object that has the pod template."""
    spec: Object = thing["spec"]
    return spec["jobTemplate"]["spec"] if thing["kind"] == "CronJob" else spec


def _container_faults(container: Object) -> Iterator[str]:
    if container.get("securityContext") != CONTEXT:
        yield f"should have the security context {CONTEXT}"
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get(kind, {})):
            yield f"has no {kind} of CPU and memory"
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        yield f"has an image of no fixed version: {container['image']}"
    if container.get("imagePullPolicy") != "IfNotPresent":
        yield "should use an image that is there"
    for variable in container.get("env", []):
        if "value" in variable and re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"]):
            yield f"has a secret in plain text: {variable['name']}"


def _references(spec: Object) -> Iterator[tuple[str, str, str | None]]:
    """Yield kind, name and key of each ConfigMap and Secret that a pod refers to."""
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for source in container.get("envFrom", []):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"], None
        for variable in container.get("env", []):
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if reference := variable.get("valueFrom", {}).get(field):
                    yield kind, reference["name"], reference["key"]
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None


def _selector_faults(thing: Object, objects: list[Object]) -> Iterator[str]:
    spec = thing.get("spec", {})
    namespace = thing["metadata"].get("namespace")
    kind = thing["kind"]
    if kind == "Service":
        selector = spec.get("selector")
    elif kind in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
        selector = spec.get("selector", {}).get("matchLabels")
    elif kind == "NetworkPolicy" and namespace == SERVICES:
        selector = spec.get("podSelector", {}).get("matchLabels", {})
    else:
        return
    templates = [t for owner, t in pods(objects) if owner["metadata"]["namespace"] == namespace]
    matching = [t for t in templates if selector is not None and _matches(selector, t)]
    if not matching:
        yield f"selects no pod: {selector}"
    ports = spec["ports"] if kind == "Service" else []
    for port in ports:
        for template in matching:
            if port["targetPort"] not in _port_names(template):
                yield f"has a port that its pod has not: {port['targetPort']}"


def _matches(selector: Object, template: Object) -> bool:
    return bool(selector.items() <= template["metadata"]["labels"].items())


def _port_names(template: Object) -> list[str]:
    open_ports = [c.get("ports", []) for c in template["spec"]["containers"]]
    return [port["name"] for ports in open_ports for port in ports]


def _role_faults(role: Object) -> Iterator[str]:
    for rule in role["rules"]:
        if "*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]:
            yield f"allows everything of something: {rule}"
        if {"secrets", "configmaps"} & set(rule["resources"]) and not rule.get("resourceNames"):
            yield f"allows every one of {rule['resources']}"


def _denies_by_default(thing: Object, policy_type: str) -> bool:
    return (
        thing["kind"] == "NetworkPolicy"
        and thing["metadata"]["namespace"] == SERVICES
        and thing["spec"]["podSelector"] == {}
        and policy_type in thing["spec"]["policyTypes"]
        and policy_type.lower() not in thing["spec"]
    )


def reachable(
    objects: list[Object], source: tuple[str, Object], target: tuple[str, Object], port: int
) -> bool:
    """Return whether the NetworkPolicies let a pod connect to another, by Kubernetes' rules.

    Args:
        objects: with the policies.
        source: namespace and labels of the pod that connects.
        target: namespace and labels of the other pod.
        port: of the other pod.
    """
    leaves = _lets(objects, "Egress", source, target, port)
    return leaves and _lets(objects, "Ingress", target, source, port)


def _lets(
    objects: list[Object],
    policy_type: str,
    own: tuple[str, Object],
    other: tuple[str, Object],
    port: int,
) -> bool:
    specs = [
        thing["spec"]
        for thing in objects
        if thing["kind"] == "NetworkPolicy"
        and thing["metadata"]["namespace"] == own[0]
        and policy_type in thing["spec"]["policyTypes"]
        and thing["spec"]["podSelector"].get("matchLabels", {}).items() <= own[1].items()
    ]
    rules = [rule for spec in specs for rule in spec.get(policy_type.lower(), [])]
    peers = "from" if policy_type == "Ingress" else "to"
    return not specs or any(
        port in [allowed["port"] for allowed in rule["ports"]]
        and (peers not in rule or any(_is_peer(peer, own[0], other) for peer in rule[peers]))
        for rule in rules
    )


def _is_peer(peer: Object, own_namespace: str, other: tuple[str, Object]) -> bool:
    namespace, labels = other
    if "ipBlock" in peer:
        return False
    selected = peer.get("namespaceSelector", {}).get("matchLabels", {})
    if namespace != selected.get("kubernetes.io/metadata.name", own_namespace):
        return False
    return bool(peer.get("podSelector", {}).get("matchLabels", {}).items() <= labels.items())


def main() -> int:
    """Print the outcome per overlay and version; return 1 if there is a fault, else 0."""
    if not kubectl.find():
        print("manifests-check: needs kubectl 1.27 or newer", file=sys.stderr)
        return 1
    failed = False
    for overlay in (*OVERLAYS, TEAM):
        objects = render(overlay)
        rules = faults_of_a_team if overlay == TEAM else faults
        outcomes = {"rules of the project": rules(objects)}
        for version in VERSIONS:
            outcomes[f"Kubernetes {version}"] = schema_faults(objects, version)
        for check, messages in outcomes.items():
            outcome = "FAULTS" if messages else "ok"
            print(f"{overlay:6} {len(objects)} objects  {check:22} {outcome}")
            for message in messages:
                print(f"       {message}")
            failed = failed or bool(messages)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
