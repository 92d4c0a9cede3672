"""An endpoint that fails is asked again, a parameter it does not know is left out, and its key is written nowhere."""

import json
import time

import pytest
from scripted_llm import chat, serving
from tiny import user_error

from sae_core.errors import UserError
from subrank.studies.llm.answers import IN_A_ROW, Answers, cost
from subrank.studies.llm.endpoint import KEY, TRIES, Endpoint
from subrank.studies.llm.questions import Question, Reply, levels_in

ASKED, TWO = Question("What?"), Question("Which?", 2, 9)
GOOD = (200, {}, chat("This feature is active on cats"))


def endpoint(url: str, waits: list[float] | None = None, **how) -> Endpoint:
    return Endpoint(url, "m", sleep=(waits if waits is not None else []).append, **how)


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, "oops"),
        (503, {}, ""),
        (429, {}, "{}"),
        (200, {}, chat("half")[:30]),
        (200, {}, "[]"),
        (200, {}, '{"choices": []}'),
    ],
    ids=["500", "503", "429", "truncated", "a list", "no choices"],
)
def test_what_fails_for_a_while_is_tried_again(fault):
    waits = []
    with serving(lambda number, *_: fault if number < 3 else GOOD) as (url, requests):
        reply = endpoint(url, waits, first_wait=0.5).answer(ASKED)
    assert reply.text.endswith("cats") and len(requests) == 3 and waits == [0.5, 1.0]


def test_retry_after_is_kept_to():
    waits = []
    with serving(lambda number, *_: GOOD if number > 2 else (429, {"Retry-After": "7"}, "")) as (url, _):
        assert endpoint(url, waits).answer(ASKED).text
    assert waits == [7, 7]


def test_what_fails_for_good_is_a_reply_with_a_problem():
    with serving(lambda *_: (500, {}, "broken")) as (url, requests):
        reply = endpoint(url).answer(ASKED)
    assert not reply.text and "500" in reply.problem and "broken" in reply.problem and len(requests) == TRIES


def test_a_server_that_does_not_answer_in_time():
    def slow(*_):
        time.sleep(0.2)
        return GOOD

    with serving(slow) as (url, _):
        assert "Timeout" in endpoint(url, timeout=0.02).answer(ASKED).problem


def test_no_server_at_all():
    with serving(lambda *_: GOOD) as (url, _):
        pass
    assert "Connect" in endpoint(url).answer(ASKED).problem


@pytest.mark.parametrize(
    "body", [chat(""), json.dumps({"choices": [{"message": {"content": None, "refusal": "no"}}]})], ids=["", "refusal"]
)
def test_an_empty_answer_is_an_answer_that_is_none(body):
    with serving(lambda *_: (200, {}, body)) as (url, requests):
        reply = endpoint(url).answer(TWO)
    assert reply == Reply("") and levels_in(reply, TWO) is None and len(requests) == 1


def test_probabilities_are_read():
    content = [
        {"token": "1\t", "logprob": -0.1},
        {"token": "3", "logprob": -1.0, "top_logprobs": [{"token": "3", "logprob": -1}, {"token": "5", "logprob": -1}]},
        {"token": "\n2\t", "logprob": 0.0, "top_logprobs": []},
        {"token": "0", "logprob": 0.0, "top_logprobs": []},
    ]
    with serving(lambda *_: (200, {}, chat("1\t3\n2\t0", logprobs={"content": content}))) as (url, requests):
        reply = endpoint(url).answer(TWO)
    assert levels_in(reply, TWO) == [4, 0] and requests[0]["top_logprobs"] == 20 and requests[0]["temperature"] == 0


def test_a_parameter_that_is_refused_is_left_out_from_then_on():
    """As `transformers serve` refuses probabilities, and some of OpenAI's models a temperature."""

    def strict(_number, _headers, request):
        unknown = sorted(request.keys() & {"logprobs", "top_logprobs"})
        return (
            (422, {}, json.dumps({"detail": f"not supported: {unknown}"})) if unknown else (200, {}, chat("1\t1\n2\t1"))
        )

    with serving(strict) as (url, requests):
        asked = endpoint(url)
        assert [levels_in(asked.answer(TWO), TWO) for _ in range(2)] == [[1, 1], [1, 1]]
    assert len(requests) == 3 and "logprobs" not in requests[-1] and "max_tokens" in requests[-1]
    late = endpoint(url)  # of requests side by side a second is refused what the first has been told of already
    sent = late._request(TWO)
    assert late._leaves_out("no logprobs", sent) and late._leaves_out("no logprobs", sent)
    assert not late._leaves_out("no logprobs", late._request(TWO)) and not late._leaves_out("temperatures", sent)


def test_a_key_from_a_file_is_stripped_and_what_is_none_is_refused(monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret\n")
    assert endpoint("http://127.0.0.1:1/v1")._key == "sk-secret"
    monkeypatch.setenv(KEY, "sk-ключ")
    with user_error(KEY, "no key has"):
        endpoint("http://127.0.0.1:1/v1")


@pytest.mark.parametrize(("status", "words"), [(401, KEY), (404, "no such model")])
def test_what_will_never_be_answered_is_one_line(status, words, monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    with (
        serving(lambda _, headers, __: (status, {}, f"wrong {headers['Authorization']}")) as (url, _),
        pytest.raises(UserError, match=words) as caught,
    ):
        endpoint(url).answer(ASKED)
    assert "sk-secret" not in str(caught.value) and "[key]" in str(caught.value)


def test_an_address_must_be_one_and_hold_no_secret():
    for url in ("ftp://there/v1", "http://", "http://[1"):
        with user_error("no address"):
            Endpoint(url, "m")
    for url in ("http://me:secret@there/v1", "https://there/v1?key=secret"):
        with user_error(KEY):
            Endpoint(url, "m")


# ---- answers that are kept -------------------------------------------------------------------------


QUESTIONS = [Question(f"What is {number}?") for number in range(6)]


def test_a_second_run_asks_nothing_and_the_key_is_in_no_file(tmp_path, monkeypatch):
    """Even where the server sends the key back."""
    monkeypatch.setenv(KEY, "sk-secret")

    def echo(_number, headers, request):
        return 200, {}, chat(f"{request['messages'][0]['content']} {headers['Authorization']}")

    with serving(echo) as (url, requests):
        first = Answers(endpoint(url), tmp_path).all(QUESTIONS + QUESTIONS[:2], "asked")
        answers = Answers(endpoint(url), tmp_path)
        assert answers.n_unknown(QUESTIONS) == 0
        again = answers.all(QUESTIONS + QUESTIONS[:2], "asked")
    assert len(requests) == 6 and again == first and (answers.n_asked, answers.n_known) == (0, 6)
    assert [reply.text.split(" Bearer")[0] for reply in first[:6]] == [question.text for question in QUESTIONS]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 6 and not any("sk-secret" in text for text in written) and "sk-secret" not in str(first)


def test_half_a_character_is_kept_as_a_question_mark(tmp_path):
    """JSON may hold half of a surrogate pair, which no file can."""
    content = [{"token": "\ud83d", "logprob": -1.0}]
    with serving(lambda *_: (200, {}, chat("ca\ud83dts", logprobs={"content": content}))) as (url, _):
        (reply,) = Answers(endpoint(url), tmp_path).all([TWO], "asked")
        assert reply.text == "ca?ts" and Answers(endpoint(url), tmp_path).all([TWO], "asked") == [reply]


def test_a_model_of_the_same_name_at_another_address_is_asked_anew(tmp_path):
    with serving(lambda *_: GOOD) as (url, _), serving(lambda *_: (200, {}, chat("dogs"))) as (other_url, requests):
        replies = [Answers(endpoint(each), tmp_path).all(QUESTIONS[:1], "asked") for each in (url, other_url, url)]
    assert len(requests) == 1 and replies[0] == replies[2] != replies[1]


def test_another_model_is_asked_anew_and_a_damaged_file_is_asked_again(tmp_path):
    with serving(lambda *_: GOOD) as (url, requests):
        Answers(endpoint(url), tmp_path).all(QUESTIONS[:2], "asked")
        Answers(Endpoint(url, "other"), tmp_path).all(QUESTIONS[:1], "asked")
        assert len(requests) == 3
        for path in tmp_path.rglob("*.json"):
            path.write_text(path.read_text()[:20])
        Answers(endpoint(url), tmp_path).all(QUESTIONS[:2], "asked")
    assert len(requests) == 5


def test_what_did_not_come_back_is_counted_and_asked_again_next_time(tmp_path):
    with serving(lambda _, __, request: (400, {}, "bad") if "2" in request["messages"][0]["content"] else GOOD) as (
        url,
        _,
    ):
        answers = Answers(endpoint(url), tmp_path)
        replies = answers.all(QUESTIONS, "asked")
    assert [bool(reply.problem) for reply in replies] == [number == 2 for number in range(6)]
    assert len(answers.problems) == 1 and "400" in answers.problems[0]
    assert Answers(endpoint(url), tmp_path).n_unknown(QUESTIONS) == 1


def test_a_server_that_is_not_there_ends_the_run_at_its_first_question(tmp_path):
    with serving(lambda *_: (500, {}, "broken")) as (url, requests), user_error("no answer", "broken"):
        Answers(endpoint(url), tmp_path).all(QUESTIONS, "asked")
    assert len(requests) == TRIES


def test_a_server_that_breaks_ends_the_run_and_what_it_said_is_kept(tmp_path):
    many = [Question(f"What is {number}?") for number in range(40)]
    script = lambda number, *_: GOOD if number <= 5 else (400, {}, "broken")  # noqa: E731
    # those that are on their way when it ends are let go on
    with serving(script) as (url, requests), user_error("answers so far are kept"):
        Answers(endpoint(url), tmp_path, at_once=2).all(many, "asked")
    assert len([*tmp_path.rglob("*.json")]) == 5 and 5 + IN_A_ROW <= len(requests) < 40


def test_no_more_questions_wait_than_may():
    class Busy:
        name, place, now, most = "busy", "here", 0, 0

        def answer(self, question):
            self.now += 1
            self.most = max(self.most, self.now)
            time.sleep(0.002)
            self.now -= 1
            return Reply("x")

    busy, said = Busy(), []
    Answers(busy, at_once=3).all([Question(str(n)) for n in range(30)], "asked", lambda event: said.append(event.done))
    assert 1 < busy.most <= 3 and said[-1] == 30 and len(said) <= 31


def test_the_cost_is_told_in_questions_and_tokens():
    assert cost([Question("x" * 400), Question("x" * 400, 2, 9)]) == (
        "at most 2 questions, about 200 tokens read and at most 112 written"
    )
