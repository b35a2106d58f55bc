"""The errors that a person reads, in the output of the command or of a task."""

PREFIX = "taylorglo: error: "


def problems(output: str) -> list[str]:
    """Return the lines without their prefix; every line has to be one of our errors."""
    lines = output.splitlines()
    assert all(line.startswith(PREFIX) for line in lines), output
    return [line.removeprefix(PREFIX) for line in lines]
