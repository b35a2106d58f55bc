"""``taylorglo completion``: the script with which a shell completes the command line."""

import click

VARIABLE = "_TAYLORGLO_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print the script by which a shell completes words.

    It completes commands, options, files and the names of sweeps. For bash, add this line to
    ~/.bashrc: eval "$(taylorglo completion bash)". For zsh, add the same with zsh to ~/.zshrc. For
    fish: taylorglo completion fish | source.
    """
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    root = click.get_current_context().find_root().command
    click.echo(completion(root, {}, "taylorglo", VARIABLE).source())
