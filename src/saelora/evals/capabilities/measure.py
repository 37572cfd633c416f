"""--parts capabilities."""

from saelora.evals.capabilities import tasks as lm_tasks
from saelora.evals.capabilities.options import Options
from saelora.evals.capabilities.result import Capabilities
from saelora.evals.capabilities.scores import ARMS, evaluate_tasks, same_draws
from saelora.evals.subject import Subject


def run(subject: Subject, config: Options) -> Capabilities:
    """Scores of the four variants on every task, and what they differ by, document by document."""
    from lm_eval import __version__ as version

    names = lm_tasks.task_names(config.tasks)
    with same_draws():
        loaded = lm_tasks.load(names, lm_tasks.find(names, config.task_folder), config.fewshot)
        total = len(ARMS) * loaded.n_requests(config.limit)
    with subject.console.progress("capabilities", total, "requests") as bar:
        rows = evaluate_tasks(
            subject,
            subject.tokenizer,
            loaded,
            limit=config.limit,
            batch_size=config.capability_batch,
            bos=config.capability_bos,
            progress=bar.advance,
        )
    return Capabilities(
        arms=list(ARMS),
        tasks=rows,
        trained=subject.trained,
        limit=config.limit,
        bos=config.capability_bos,
        lm_eval=version,
    )
