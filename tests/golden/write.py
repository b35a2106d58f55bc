"""Write the compiled pipelines of this folder anew, one per NAME.config.yaml: ``make golden``.

Look at the difference before committing it: it is what Kubeflow Pipelines will be given.
"""

import re
import tempfile
from pathlib import Path

from taylorglo_pipelines import config
from taylorglo_pipelines.pipeline.compile import compile_sweep

FOLDER = Path(__file__).parent
CONFIGS = sorted(FOLDER.glob("*.config.yaml"))


def golden_of(path: Path) -> Path:
    """Where the compiled pipeline of a configuration is kept."""
    return path.with_name(path.name.replace(".config.", "."))


def compiled(path: Path) -> str:
    """The pipeline of a configuration, without the version of the compiler."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pipeline.yaml"
        compile_sweep(config.load(path), output)
        return re.sub(
            r"^sdkVersion: kfp-\S+$", "sdkVersion: kfp", output.read_text(), flags=re.MULTILINE
        )


if __name__ == "__main__":
    for each in CONFIGS:
        golden_of(each).write_text(compiled(each))
        print(golden_of(each).name)
