"""What adapt and finetune-sae have in common: checks, a first line on the screen, and only then the libraries."""

from contextlib import ExitStack

from saelora.console import Console
from saelora.evals.loss_result import RunResult
from saelora.jobs.acting import check_acting
from saelora.jobs.run import CHECKPOINTS, check_out, processes, taken_up
from saelora.jobs.training_options import StudentConfig, recipe_of
from saelora.locks import tidy
from saelora.manifest import RESULTS, read_json
from saelora.named import check_named


def train_student(config: StudentConfig, command: str) -> RunResult:
    """Train what ``config.method`` trains, and measure what it bought; ``command`` is the one to repeat.

    Returns:
        What results.json holds.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    config = taken_up(config)
    group = processes(config)
    group.check_rows(config.batch_rows or group.world)
    console = Console(quiet=config.quiet or not group.is_main)
    folder = group.on_main(lambda: check_out(config))
    if config.resume and group.on_main((folder / RESULTS).exists):
        console.say(f"{folder} is finished already; nothing to resume")
        group.on_main(lambda: tidy(folder, CHECKPOINTS))
        return RunResult.read(read_json(folder / RESULTS), folder / RESULTS, "run it anew with --overwrite")
    check_acting(config, command)
    recipe_of(config)  # refuses bad values before anything is loaded
    check_named(config)
    console.say(f"loading {config.model} and {', '.join([*config.sae, *config.transcoders]) or 'no SAE'}")
    from saelora.jobs.student_run import train_and_measure  # seconds: after what can be wrong without it

    with ExitStack() as held:
        return train_and_measure(config, command, console, folder, group, held)
