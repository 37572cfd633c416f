"""The server, over HTTP and with OpenAI's own client: what it answers is what the loaded run generates."""

import json
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from openai import APIStatusError, AuthenticationError, BadRequestError, OpenAI, RateLimitError

import saelora
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.use.run import LoadedRun
from saelora.use.serving import engine as engine_module
from saelora.use.serving.app import Limits, application
from saelora.use.serving.engine import Engine
from saelora.use.serving.rows import Ask, Ended

PROMPTS = ["bada lume", "re", "bada bada lume re", "lume"]


class Served:
    """A server of its own in a thread, until the test ends."""

    def __init__(self, run: LoadedRun, limits: Limits, token: str | None = None, **engine: Any):
        self.engine = Engine(run, **engine)
        self.place = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.place.getsockname()[1]}"
        app = application(self.engine, limits, token=token)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.place]}, daemon=True)
        self.thread.start()

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def close(self) -> None:
        self.server.should_exit = True
        self.engine.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def own_run(run_folder: Path) -> LoadedRun:
    """The engine's thread has it for itself."""
    loaded = saelora.load(run_folder)
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return loaded


@pytest.fixture(scope="module")
def reference(run_folder: Path) -> LoadedRun:
    loaded = saelora.load(run_folder)
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return loaded


@pytest.fixture(scope="module")
def served(own_run: LoadedRun) -> Iterator[Served]:
    made = Served(own_run, Limits(most_tokens=64, timeout=60))
    yield made
    made.close()


@pytest.fixture
def client(served: Served) -> OpenAI:
    return served.client()


def test_the_variants_are_the_models(client: OpenAI, reference: LoadedRun) -> None:
    assert [model.id for model in client.models.list()] == list(reference.variants)
    assert client.models.retrieve("spliced").id == "spliced"


@pytest.mark.parametrize("variant", ["original", "spliced", "adapted", "adapted_clean"])
def test_a_completion_is_what_the_run_generates(client: OpenAI, reference: LoadedRun, variant: str) -> None:
    found = client.completions.create(model=variant, prompt="bada lume", max_tokens=9, temperature=0)
    with reference.as_variant(variant):
        assert found.choices[0].text == reference.generate("bada lume", max_new_tokens=9)
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(reference.ids("bada lume"))
    assert found.usage.completion_tokens <= 9


def test_several_prompts_are_several_choices(client: OpenAI, reference: LoadedRun) -> None:
    found = client.completions.create(model="adapted", prompt=PROMPTS, max_tokens=6)
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert [c.text for c in found.choices] == [reference.generate(prompt, max_new_tokens=6) for prompt in PROMPTS]


def test_a_chat_goes_through_the_template(client: OpenAI, reference: LoadedRun) -> None:
    messages: Any = [{"role": "user", "content": "bada lume"}]
    found = client.chat.completions.create(model="spliced", messages=messages, max_tokens=7)
    with reference.spliced():
        assert found.choices[0].message.content == reference.generate(messages, max_new_tokens=7)


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_is_the_same_text_in_pieces(client: OpenAI, reference: LoadedRun, chat: bool) -> None:
    options: Any = {"model": "adapted", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    pieces, reasons, usage = [], [], None
    if chat:
        for part in client.chat.completions.create(messages=[{"role": "user", "content": "bada"}], **options):
            usage = part.usage or usage
            for choice in part.choices:
                pieces.append(choice.delta.content or "")
                reasons.append(choice.finish_reason)
        whole = reference.generate([{"role": "user", "content": "bada"}], max_new_tokens=8)
    else:
        for part in client.completions.create(prompt="bada", **options):
            usage = part.usage or usage
            for choice in part.choices:
                pieces.append(choice.text)
                reasons.append(choice.finish_reason)
        whole = reference.generate("bada", max_new_tokens=8)
    assert "".join(pieces) == whole
    assert sum(bool(piece) for piece in pieces) > 1
    assert [reason for reason in reasons if reason] == reasons[-1:]
    assert usage is not None
    assert usage.completion_tokens > 0


def test_logprobs_are_those_of_the_variant(client: OpenAI, reference: LoadedRun) -> None:
    found = client.completions.create(model="spliced", prompt="bada lume", max_tokens=4, logprobs=3)
    told: Any = found.choices[0].logprobs
    ids = reference.ids("bada lume")
    with reference.spliced():
        for i, logprob in enumerate(told.token_logprobs):
            logprobs = reference.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)
            best = logprobs.topk(3)
            assert logprob == pytest.approx(float(best.values[0]), abs=1e-4)
            assert sorted(told.top_logprobs[i].values()) == pytest.approx(sorted(best.values.tolist()), abs=1e-4)
            ids.append(int(best.indices[0]))
    chat = client.chat.completions.create(
        model="spliced", messages=[{"role": "user", "content": "bada"}], max_tokens=2, logprobs=True, top_logprobs=2
    )
    content: Any = chat.choices[0].logprobs
    assert [len(token.top_logprobs) for token in content.content] == [2, 2]
    assert content.content[0].logprob == content.content[0].top_logprobs[0].logprob


def test_steering_and_latents_are_further_fields(client: OpenAI, reference: LoadedRun) -> None:
    steer: Any = {"3": "+40", "5": 0}
    found: Any = client.completions.create(
        model="spliced", prompt="bada lume", max_tokens=6, extra_body={"steer": steer, "latents": 2}
    )
    with reference.spliced(), reference.steer(steer):
        text = reference.generate("bada lume", max_new_tokens=6)
        assert found.choices[0].text == text
        ids = reference.ids("bada lume") + reference.tokenizer(text, add_special_tokens=False)["input_ids"]
        seen = reference.latents(ids[: len(reference.ids("bada lume"))]).at()
    told = found.choices[0].latents[0]["tokens"]
    for each, own in zip(seen, told, strict=False):
        assert own["token"] == each.token
        assert [latent for latent, _ in own["active"]] == [f.latent for f in each.active[:2]]
    assert any(latent == 3 for token in told for latent, _ in token["active"])


def test_samples_are_repeatable_by_their_seed_alone_or_in_a_batch(client: OpenAI) -> None:
    def sample(seed: int) -> str:
        made = client.completions.create(
            model="adapted", prompt="bada", max_tokens=12, temperature=1.5, top_p=0.95, seed=seed
        )
        return made.choices[0].text

    alone = [sample(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(sample, range(6)))
    assert together == alone
    assert len(set(alone)) > 1


def test_top_p_leaves_the_likeliest_token(client: OpenAI, reference: LoadedRun) -> None:
    made = client.completions.create(model="adapted", prompt="bada", max_tokens=6, temperature=3, top_p=1e-9, seed=1)
    assert made.choices[0].text == reference.generate("bada", max_new_tokens=6)


def test_stops_cut_the_text_before_them(client: OpenAI, reference: LoadedRun) -> None:
    whole = reference.generate("bada lume", max_new_tokens=10)
    stop = whole[3:6]
    for stream in (False, True):
        if stream:
            ask: Any = {"model": "adapted", "prompt": "bada lume", "max_tokens": 10, "stop": stop}
            parts = client.completions.create(**ask, stream=True)
            choices = [choice for part in parts for choice in part.choices]
            text, reason = "".join(choice.text for choice in choices), choices[-1].finish_reason
        else:
            made = client.completions.create(model="adapted", prompt="bada lume", max_tokens=10, stop=[stop, "@@"])
            text, reason = made.choices[0].text, made.choices[0].finish_reason
        assert text == whole[: whole.index(stop)]
        assert reason == "stop"


def test_many_clients_at_once_each_get_their_own_answer(client: OpenAI, reference: LoadedRun) -> None:
    asked = [(variant, prompt) for prompt in PROMPTS for variant in ("original", "spliced", "adapted")] * 4
    expected = {}
    for variant, prompt in set(asked):
        with reference.as_variant(variant):
            expected[variant, prompt] = reference.generate(prompt, max_new_tokens=5)

    def ask(pair: tuple[str, str]) -> str:
        return client.completions.create(model=pair[0], prompt=pair[1], max_tokens=5).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, asked)) == [expected[pair] for pair in asked]


class Counting(Engine):
    """Knows how many asks each batch held."""

    def __init__(self, run: LoadedRun, **options: Any):
        self.sizes: list[int] = []
        super().__init__(run, **options)

    def _generate(self, batch: list[Ask]) -> None:
        self.sizes.append(len(batch))
        super()._generate(batch)


def test_who_was_answered_together_is_waited_for_and_not_longer_than_the_server_runs(
    reference: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 1000.0)  # it never runs out here
    monkeypatch.setattr(engine_module, "SHARE", 1e9)
    engine = Counting(reference)
    ended: queue.Queue[Any] = queue.Queue()

    def ask() -> Ask:
        return Ask(
            engine.ids("lume"),
            "adapted",
            2,
            lambda event: ended.put(event) if isinstance(event, Ended) else None,
            time.monotonic() + 120,
        )

    engine.submit([ask(), ask(), ask()])
    assert [ended.get(timeout=60).reason for _ in range(3)] == ["length"] * 3
    for _ in range(3):  # one by one, and later than an ask alone is waited for
        engine.submit([ask()])
        time.sleep(5 * engine_module.GATHER)
    assert [ended.get(timeout=60).reason for _ in range(3)] == ["length"] * 3
    assert engine.sizes == [3, 3]
    engine.submit([ask()])
    engine.stop()
    assert ended.get(timeout=60).reason == "cancelled"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "gpt-4"}, "model 'gpt-4' is not served: expected one of original, spliced"),
        ({"max_tokens": 1000}, "are more than the 64 that this server takes"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"n": 2}, "n: Input should be 1"),
        ({"presence_penalty": 0.5}, "presence_penalty: Input should be less than or equal to 0"),
        ({"extra_body": {"steer": {"99999": 1}}}, "latent 99,999 is not there"),
        ({"extra_body": {"steer": {"3": "much"}}}, "steering of latent 3 is 'much'"),
        ({"extra_body": {"stear": {}}}, "stear: this field is not known here"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(client: OpenAI, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(**{"model": "adapted", "prompt": "bada", "max_tokens": 4, **change})
    message = caught.value.body["message"]  # type: ignore[index]
    assert said in message
    assert "\n" not in message


def post(url: str, data: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"{url}/v1/completions", data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_pages_of_the_web_cannot_use_the_server(served: Served) -> None:
    body = json.dumps({"model": "adapted", "prompt": "bada", "max_tokens": 1}).encode()
    kind = {"Content-Type": "application/json"}
    assert post(served.url, body, kind) == 200
    assert post(served.url, body, {"Content-Type": "text/plain"}) == 415
    request = urllib.request.Request(f"{served.url}/v1/completions", body, {**kind, "Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert post(served.url, b" " * 2_000_001, kind) == 413


class Slow:
    """Makes every token of a run take a while."""

    def __init__(self, run: LoadedRun, seconds: float):
        body = anatomy_of(run.model).body  # PEFT's own forward is none of generate's
        self.handle = body.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def wait_for(true: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def slow(run_folder: Path) -> Iterator[Served]:
    """One request at a time, one more may wait, and each takes seconds."""
    run = saelora.load(run_folder)
    handle = Slow(run, 0.2).handle
    made = Served(run, Limits(most_tokens=600, timeout=5), token="secret", most_rows=1, most_waiting=1)
    yield made
    made.close()
    handle.remove()


def test_a_token_is_asked_for(slow: Served) -> None:
    with pytest.raises(AuthenticationError):
        slow.client("wrong").completions.create(model="adapted", prompt="bada", max_tokens=1)
    assert slow.client("secret").completions.create(model="adapted", prompt="bada", max_tokens=1).choices


def test_what_is_too_much_is_sent_away_what_takes_too_long_ends_who_leaves_is_forgotten(slow: Served) -> None:
    client = slow.client("secret")
    ask: Any = {"model": "original", "prompt": "bada", "max_tokens": 60}
    stream = client.completions.create(**ask, stream=True)
    next(iter(stream))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.completions.create, **ask)
        wait_for(lambda: slow.engine.n_waiting == 1)
        with pytest.raises(RateLimitError):
            client.completions.create(**ask)
        stream.close()  # the one that waits comes next
        wait_for(lambda: slow.engine.n_waiting == 0)
        with pytest.raises(APIStatusError) as caught:
            waiting.result()
    assert caught.value.status_code == 504
    assert client.completions.create(**{**ask, "max_tokens": 1}).choices


def test_the_command_refuses_what_it_cannot_serve(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saelora.use.serve import serve

    monkeypatch.delenv("SAELORA_TOKEN", raising=False)
    with pytest.raises(InputError, match="lets other machines in: set a token"):
        serve(ref=str(run_folder), host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another --port"):
        serve(ref=str(run_folder), port=taken.getsockname()[1])
    with pytest.raises(InputError, match="is no run"):
        serve(ref=str(tmp_path), port=0)


def test_parts_of_a_message_are_its_text_and_what_is_no_text_is_refused(client: OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "bada "}, {"type": "text", "text": "lume"}]
    ask: Any = {"model": "spliced", "max_tokens": 5}
    whole = client.chat.completions.create(messages=[{"role": "user", "content": "bada lume"}], **ask)
    split = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **ask)
    assert split.choices[0].message.content == whole.choices[0].message.content
    for content in (None, [{"type": "image_url", "image_url": {"url": "x"}}]):
        with pytest.raises(BadRequestError):
            client.chat.completions.create(messages=[{"role": "user", "content": content}], **ask)


@pytest.mark.parametrize(
    "change",
    [
        {"stop": ""},
        {"stream_options": {"include_usage": True}},
        {"extra_body": {"steer": {"3": True}}},
        {"extra_body": {"steer": {"3": 1e300}}},
        {"extra_body": {"steer": {"9" * 5000: 1}}},
        {"prompt": ["bada"] * 65},
        {"prompt": [True, False]},
    ],
)
def test_what_would_be_passed_over_or_break_is_refused(client: OpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        client.completions.create(**{"model": "adapted", "prompt": "bada", "max_tokens": 4, **change})


def test_a_temperature_near_nothing_is_greedy(client: OpenAI, reference: LoadedRun) -> None:
    made = client.completions.create(model="adapted", prompt="bada", max_tokens=5, temperature=1e-40)
    assert made.choices[0].text == reference.generate("bada", max_new_tokens=5)


def test_logprobs_are_the_models_own_whatever_its_generation_config_does(run_folder: Path) -> None:
    run = saelora.load(run_folder)
    run.model.generation_config.repetition_penalty = 3.0
    made = Served(run, Limits(most_tokens=64))
    ids = run.ids("bada bada lume lume")
    answer = made.client().completions.create(model="original", prompt=ids, max_tokens=3, logprobs=1)
    told: Any = answer.choices[0].logprobs
    made.close()
    run.model.generation_config.repetition_penalty = None
    with run.original():
        for logprob, token in zip(told.token_logprobs, told.tokens, strict=True):
            new = run.tokenizer.convert_tokens_to_ids(token)
            logprobs = run.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert min(abs(float(logprobs[i]) - logprob) for i in range(len(logprobs))) < 1e-4, (token, new)
            ids.append(int((logprobs - logprob).abs().argmin()))


def test_a_stopping_server_says_so_to_those_who_wait(slow: Served) -> None:
    client = slow.client("secret")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.completions.create, model="original", prompt="bada", max_tokens=40)
        time.sleep(0.5)
        slow.engine.begin_stop()
        with pytest.raises(APIStatusError) as caught:
            asked.result()
    assert caught.value.status_code == 503


def test_steps_between_answers_that_fail_end_alone(reference: LoadedRun, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(reference)
    began = threading.Event()

    def steps() -> Iterator[None]:
        began.set()
        raise RuntimeError("no room")
        yield

    engine.when_idle(steps())
    assert began.wait(10)
    told: queue.Queue[Any] = queue.Queue()
    engine.submit([Ask(tuple(engine.ids("re")), "adapted", 2, told.put, time.monotonic() + 60)])
    while not isinstance(event := told.get(timeout=10), Ended):
        pass
    assert event.reason == "length"
    engine.stop()
    assert "ended early: no room" in " ".join(capsys.readouterr().err.split())
