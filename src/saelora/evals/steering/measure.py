"""--parts steering."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from saelora.core.splice import TokenMask
from saelora.data.pack import WINDOW_CHARS, check_embedded, in_validation
from saelora.errors import InputError
from saelora.evals.samples import prompts_from
from saelora.evals.steering import effects as steering
from saelora.evals.steering import latents as find
from saelora.evals.steering.interventions import direction
from saelora.evals.steering.options import Options, given_texts
from saelora.evals.steering.result import Corpora, Latent, Sample, Sides, Skipped, Steering
from saelora.evals.steering.texts import CHARS_PER_TOKEN, SHARES, Text, apart, tokenised
from saelora.evals.steering.user_texts import UserText
from saelora.evals.subject import Subject
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, parse_hookpoint

PROMPT_TOKENS, NEW_TOKENS = 16, 24
_LEAST = {"tuning": 1, "test": steering.LEAST_TEST}  # texts a side, for latents that are asked for
_ENOUGH = {"tuning": 4, "test": 8}  # for latents to be chosen, where as many are taken


def run(subject: Subject, config: Options) -> Steering:
    """Steer latents of one SAE in the original and in the adapted model.

    Raises:
        InputError: a latent or hookpoint that the SAEs lack, or too little text.
    """
    hookpoint = _hookpoint(config, subject)
    wanted = _wanted(config, subject.saes[hookpoint].d_sae)
    reader = find.Reader(subject, hookpoint)
    texts, divided = _held_out(config, subject)
    _check_embedded(texts.values(), subject)
    with subject.console.progress("latents on held-out text", _n_tokens(*texts.values())) as bar:
        fired = {name: find.firing(reader, own, bar.advance) for name, own in texts.items()}
    cases, latents, skipped = _cases(config, subject, reader, fired, wanted)
    if not cases:
        why = (
            skipped[0].why
            if skipped
            else f"no latent fires in {' to '.join(map(str, config.steering_rates))} of the passages"
        )
        raise InputError(
            f"nothing to steer: {why}; give more held-out text (--steering-tokens, --validation-fraction), other "
            f"--steering-latents, or texts of your own (--steering-positives)"
        )
    alphas = {"scale": config.steering_scale, "add": config.steering_add}
    alphas = {method: grid for method, grid in alphas.items() if grid}
    n_alphas = sum(map(len, alphas.values()))
    prompts = prompts_from(subject.rows, config.steering_samples, PROMPT_TOKENS)
    total = sum(case.n_tokens(n_alphas, len(alphas)) for case in cases) + len(prompts) * NEW_TOKENS * 2 * (
        1 + len(cases)
    )
    with subject.console.progress(f"steering {len(cases)} latents", total) as bar:
        mask = TokenMask() if config.steering_bos else subject.token_mask
        setup = steering.SteeringSetup(subject, hookpoint, mask, bar.advance)
        measured = steering.measure(setup, cases, alphas)
        samples: list[list[Sample]] = [[] for _ in cases]
        if len(prompts):
            samples = steering.samples(setup, subject.tokenizer, prompts, cases, measured, NEW_TOKENS)
    corpora = _corpora(subject, config, texts, divided)
    if not wanted:  # a chosen latent that lacks texts has given way to the next
        corpora, skipped = replace(corpora, n_latents_passed_over=len(skipped)), []
    return Steering(
        hookpoint=str(hookpoint),
        bos=config.steering_bos,
        corpora=corpora,
        skipped=skipped,
        level=steering.LEVEL,
        methods=list(alphas),
        latents=[
            replace(latent, samples=s, methods=m) for latent, s, m in zip(latents, samples, measured, strict=True)
        ],
        pooled=steering.pool(measured),
    )


def _check_embedded(sets: Iterable[list[Text]], subject: Subject) -> None:
    ids = [text.ids for texts in sets for text in texts]
    check_embedded(ids, subject.tokenizer, subject.loaded.n_embedded)


def _corpora(subject: Subject, config: Options, texts: dict[str, list[Text]], divided: str) -> Corpora:
    """Where the texts come from and how many there are."""
    return Corpora(
        source=subject.data.data or "",
        divided_by=divided,
        window_tokens=config.steering_window,
        passages={name: len(own) for name, own in texts.items()},
        tokens={name: _n_tokens(own) for name, own in texts.items()},
        positives=config.steering_positives or "found",
        negatives=config.steering_negatives or "found",
    )


def _hookpoint(config: Options, subject: Subject) -> Hookpoint:
    there = list(subject.saes)
    if not config.steering_hookpoint:
        return min(there)
    hookpoint = anatomy_of(subject.model).canonical(parse_hookpoint(config.steering_hookpoint))
    if hookpoint not in there:
        raise InputError(f"--steering-hookpoint {hookpoint} has no SAE: expected one of {', '.join(map(str, there))}")
    return hookpoint


def _wanted(config: Options, d_sae: int) -> list[int]:
    """The latents that are asked for, by option or by texts that are for one latent each; empty: choose."""
    given = [text for texts in given_texts(config).values() for text in texts or []]
    named = [text.latent for text in given if text.latent is not None]
    wanted = list(dict.fromkeys([*config.steering_latents] or named))
    for latent in (*wanted, *named):
        if not 0 <= latent < d_sae:
            raise InputError(f"steering latent {latent} is not there: this SAE has latents 0 to {d_sae - 1}")
    return wanted


def _held_out(config: Options, subject: Subject) -> tuple[dict[str, list[Text]], str]:
    """Passages of documents that training leaves out, in three sets, and what was divided between these."""
    enough = 20 * config.steering_tokens * CHARS_PER_TOKEN  # far more than is used, so that all parts of it have a say
    held_out: list[str] = []
    n_chars = n_read = 0
    for document in subject.corpus().documents():
        n_read += len(document.text)
        if in_validation(document.text, subject.data.validation_fraction):
            held_out.append(document.text)
            n_chars += len(document.text)
        if n_chars >= enough or n_read >= WINDOW_CHARS:
            break
    strings, divided = apart(held_out, config.steering_window)
    texts = {
        name: tokenised(
            strings[name], subject.tokenizer, config.steering_window, budget=round(share * config.steering_tokens)
        )
        for name, share in SHARES.items()
    }
    if not all(texts.values()):
        raise InputError(
            f"steering needs held-out text for three sets, {subject.data.data} has {n_chars} characters of it: give "
            f"more documents or a larger --validation-fraction (of the run that made the adapter)"
        )
    return texts, divided


def _n_tokens(*sets: Sequence[Text]) -> int:
    return sum(len(text.ids) for texts in sets for text in texts)


def _cases(
    config: Options, subject: Subject, reader: find.Reader, fired: dict[str, find.Firing], wanted: list[int]
) -> tuple[list[steering.Case], list[Latent], list[Skipped]]:
    """The latents that there are texts for, and those that there are not, with the reason."""
    rates, selectivity = fired["selection"].rates(), fired["selection"].selectivity()
    given = given_texts(config)
    cases: list[steering.Case] = []
    latents: list[Latent] = []
    skipped: list[Skipped] = []
    for latent in wanted or find.choose(fired["selection"], len(rates), *config.steering_rates):
        if not wanted and len(cases) == config.steering_n:
            break
        peak = float(fired["selection"].peaks(latent).max())
        sets = {name: _sides(config, subject, given, fired[name], latent, name) for name in ("tuning", "test")}
        for set_ in sets.values():
            _check_embedded(set_.values(), subject)
        own = wanted or any(texts is not None for texts in given.values())
        least = _LEAST if own else {n: min(most, _ENOUGH[n]) for n, most in _most(config).items()}
        if why := _lacks(sets, peak, least):
            skipped.append(Skipped(latent, f"latent {latent} {why}"))
            continue
        d, norm = direction(reader.sae, latent, reader.hookpoint)
        cases.append(steering.Case(latent, d, peak * norm, sets["tuning"], sets["test"]))
        latents.append(
            Latent(
                latent,
                how="given" if wanted else "selected",
                selectivity=float(selectivity[latent]),
                rate=float(rates[latent]),
                max_activation=peak,
                unit=peak * norm,
                n=Sides(*(len(sets["test"][side]) for side in steering.SIDES)),
                n_tuning=Sides(*(len(sets["tuning"][side]) for side in steering.SIDES)),
                top_passages=find.passages(reader, fired["selection"], latent, subject.tokenizer),
            )
        )
    return cases, latents, skipped


def _sides(
    config: Options,
    subject: Subject,
    given: dict[str, list[UserText] | None],
    fired: find.Firing,
    latent: int,
    name: str,
) -> dict[str, list[Text]]:
    """A latent's positives and negatives of one set: the user's own, or those that are found."""
    most = _most(config)[name]
    own: dict[str, list[Text]] = {}
    for side, texts in given.items():
        if texts is not None:
            mine = [g.text for g in texts if g.set == name and g.latent in (None, latent)]
            least = 1 + (subject.tokenizer.bos_token_id is None)
            own[side] = tokenised(mine, subject.tokenizer, subject.data.context - 1, least=least)
    positives = own.get("positives", find.positives(fired, latent, most))
    lengths = [len(text.ids) for text in positives][:most]
    return {"positives": positives, "negatives": own.get("negatives", find.negatives(fired, latent, lengths))}


def _most(config: Options) -> dict[str, int]:
    """How many positives a set has at most."""
    return {"tuning": config.steering_tuning_texts, "test": config.steering_test_texts}


def _lacks(sets: dict[str, dict[str, list[Text]]], peak: float, least: dict[str, int]) -> str | None:
    """Why a latent cannot be steered, if so."""
    if peak <= 0:
        return "never fires on the selection texts"
    for name, enough in least.items():
        for side in steering.SIDES:
            if len(sets[name][side]) < enough:
                return f"has {len(sets[name][side])} {side} among the {name} texts, {enough} or more are needed"
    return None
