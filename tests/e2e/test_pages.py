"""The pages in a real browser, over an engine that says what it was told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from browser import DESKTOP, PHONE, chromium, page_at
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

LIMIT_MS = 60_000
MARKDOWN = """# Title

Some **bold**, *slanted* and `code`, a [link](https://example.com/a) and [bad](javascript:alert(1)).

- one
- two
  1. inner

| a | b |
|---|---|
| 1 | 2 |

```html
<b>not bold</b>
```
> quoted

<img src=x onerror="document.title='broken'"><script>document.title='broken'</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def say(page: Page, text: str) -> Locator:
    """Send a message; returns the answer's element."""
    page.locator("#welcome-model", has_text="tiny").wait_for(state="attached", timeout=LIMIT_MS)
    before = page.locator(".turn.assistant").count()
    page.fill("#message", text)
    page.keyboard.press("Enter")
    return page.locator(".turn.assistant").nth(before)


def finished(answer: Locator) -> Locator:
    answer.locator(".meta > *").first.wait_for(timeout=LIMIT_MS)
    return answer


def test_an_answer_streams_and_is_measured(browser: Browser) -> None:
    engine = FakeEngine(says("Hello there, rider of trains!"))
    engine.gate_at = 5
    with RunningServer(engine) as server, page_at(browser, server.url) as page:
        answer = say(page, "Hi")
        answer.get_by_text("Hello").wait_for(timeout=LIMIT_MS)
        assert answer.locator(".body").inner_text() == "Hello"
        assert page.locator("#stop").is_visible() and page.locator("#send").is_hidden()
        engine.open_gate()
        note = finished(answer).locator(".meta").inner_text()
        assert answer.locator(".body").inner_text() == "Hello there, rider of trains!"
        assert "+ 30 tokens" in note and "tok/s" in note
        assert page.locator("#m-ttft").inner_text().endswith(("ms", "s"))
        assert page.locator("#m-rate").inner_text().endswith("tok/s")
        page.locator("#m-kv", has_text="%").wait_for(timeout=LIMIT_MS)
        (request,) = engine.requests
        assert bytes(request.prompt_ids).decode() == "user: Hi\nassistant: "
        finished(say(page, "And?"))
        assert b"assistant: Hello there, rider of trains!\nuser: And?" in bytes(engine.requests[1].prompt_ids)


def test_stop_ends_the_answer_on_the_server_too(browser: Browser) -> None:
    engine = FakeEngine(says("x" * 500))
    engine.gate_at = 7
    with RunningServer(engine) as server, page_at(browser, server.url) as page:
        answer = say(page, "Hi")
        answer.get_by_text("xxxxxxx").wait_for(timeout=LIMIT_MS)
        page.keyboard.press("Escape")
        assert "stopped" in finished(answer).locator(".meta").inner_text()
        assert engine.abort_seen.wait(LIMIT_MS / 1000)
        assert page.locator("#send").is_visible()


def test_markdown_of_a_model_is_shown_and_never_run(browser: Browser) -> None:
    with RunningServer(FakeEngine(says(MARKDOWN))) as server, page_at(browser, server.url) as page:
        body = finished(say(page, "Hi")).locator(".body")
        shown = {
            name: body.locator(name).first.inner_text() for name in ("h2", "strong", "em", "p > code", "blockquote")
        }
        assert shown == {"h2": "Title", "strong": "bold", "em": "slanted", "p > code": "code", "blockquote": "quoted"}
        assert body.locator("a").evaluate_all("links => links.map(link => link.href)") == ["https://example.com/a"]
        assert body.locator("ul > li").count() == 2 and body.locator("ul ol > li").inner_text() == "inner"
        assert body.locator("td").all_inner_texts() == ["1", "2"]
        assert body.locator("pre").inner_text() == "<b>not bold</b>"
        assert body.locator("img, script, b").count() == 0
        assert "onerror" in body.inner_text() and page.title() == "Drivetrain"


def test_tokens_show_their_probabilities_and_alternatives(browser: Browser) -> None:
    with RunningServer(FakeEngine(says("abc"))) as server, page_at(browser, server.url) as page:
        answer = finished(say(page, "Hi"))
        page.click("#tokens-view")
        tokens = answer.locator(".tok")
        assert tokens.all_inner_texts()[:3] == ["a", "b", "c"]
        assert "perplexity" in answer.locator(".meta").inner_text()
        tokens.first.hover()
        popover = page.locator("#popover")
        assert "log-probability -" in popover.inner_text()
        assert popover.locator(".alt.chosen code").inner_text() == "a"
        tokens.first.focus()
        page.keyboard.press("ArrowRight")
        assert popover.locator(".alt.chosen code").inner_text() == "b"
        page.click("#tokens-view")
        assert answer.locator(".body").inner_text() == "abc"


def test_settings_reach_the_engine_and_stay(browser: Browser) -> None:
    engine = FakeEngine()
    with RunningServer(engine) as server, page_at(browser, server.url) as page:
        page.click("#settings-button")
        for name, value in {"temperature": "0.25", "top_k": "7", "seed": "3", "max_tokens": "4", "stop": "zz"}.items():
            page.fill(f"[name={name}]", value)
        page.fill("[name=system]", "Be brief.")
        page.uncheck("[name=logprobs]")
        page.click("#settings-close")
        note = finished(say(page, "Hi")).locator(".meta").inner_text()
        assert "cut at the limit of tokens" in note
        params = engine.requests[0].params
        assert (params.temperature, params.top_k, params.seed, params.max_tokens) == (0.25, 7, 3, 4)
        assert params.logprobs is None
        assert bytes(engine.requests[0].prompt_ids).startswith(b"system: Be brief.\nuser: Hi")
        page.reload()
        assert page.input_value("[name=temperature]") == "0.25"


def test_a_key_is_asked_for_and_kept_in_the_tab_only(browser: Browser) -> None:
    engine = FakeEngine(says("Let in."))
    refused = "401 (Unauthorized)"
    with RunningServer(engine, api_keys=("secret",)) as server, page_at(browser, server.url, expected=refused) as page:
        page.get_by_text("A key is needed").wait_for(timeout=LIMIT_MS)
        page.click("#settings-button")
        page.fill("[name=key]", "secret")
        page.click("#settings-close")
        assert finished(say(page, "Hi")).locator(".body").inner_text() == "Let in."
        assert "secret" not in page.evaluate("() => JSON.stringify(localStorage)")


def test_sending_without_the_key_asks_for_it_and_loses_nothing(browser: Browser) -> None:
    refused = "401 (Unauthorized)"
    engine = FakeEngine(says("Let in."))
    with RunningServer(engine, api_keys=("secret",)) as server, page_at(browser, server.url, expected=refused) as page:
        page.get_by_text("A key is needed").first.wait_for(timeout=LIMIT_MS)
        page.fill("#message", "Hi")
        page.click("#send")
        page.get_by_role("dialog", name="A key is needed").wait_for(timeout=LIMIT_MS)
        page.keyboard.press("Escape")
        notice = page.locator("#notice-text")
        page.locator("#notice-text", has_text="this server needs an API key").wait_for(timeout=LIMIT_MS)
        page.locator("#status", has_text=notice.inner_text()).wait_for(timeout=LIMIT_MS, state="attached")
        assert page.input_value("#message") == "Hi" and engine.requests == []
        page.click("#send")
        page.get_by_role("dialog", name="A key is needed").wait_for(timeout=LIMIT_MS)
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        assert finished(page.locator(".turn.assistant")).locator(".body").inner_text() == "Let in."
        page.locator("#notice").wait_for(timeout=LIMIT_MS, state="hidden")
        assert page.input_value("#message") == ""


def test_a_stopped_server_is_told_in_words_and_found_again(browser: Browser) -> None:
    with RunningServer(FakeEngine(says("Back."))) as server, page_at(browser, server.url, expected="Failed") as page:
        page.locator("#welcome-model", has_text="tiny").wait_for(timeout=LIMIT_MS)
        page.route("**/v1/**", lambda route: route.abort())
        page.route("**/ready", lambda route: route.abort())
        page.fill("#message", "Hi")
        page.keyboard.press("Enter")
        error = finished(page.locator(".turn.assistant")).locator(".error")
        assert error.inner_text() == "The server does not answer. Is it still running?"
        page.locator("#notice-text", has_text="The server does not answer").wait_for(timeout=LIMIT_MS)
        page.unroute_all()
        page.locator("#notice").wait_for(state="hidden", timeout=LIMIT_MS)
        page.get_by_role("button", name="Try again").click()
        page.locator(".turn.assistant .body", has_text="Back.").wait_for(timeout=LIMIT_MS)


def test_a_stream_that_breaks_keeps_what_came(browser: Browser) -> None:
    head = 'data: {"choices": [{"index": 0, "delta": {"content": "Half an "}}]}\n\n'
    with RunningServer(FakeEngine()) as server, page_at(browser, server.url) as page:
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=head, content_type="text/event-stream"))
        answer = finished(say(page, "Hi"))
        assert answer.locator(".body").inner_text().strip() == "Half an"
        assert answer.locator(".error").inner_text() == "The connection ended before the answer was complete."


def test_a_reload_keeps_the_conversation_and_a_new_chat_forgets_it(browser: Browser) -> None:
    engine = FakeEngine(says("Kept."))
    with RunningServer(engine) as server, page_at(browser, server.url) as page:
        finished(say(page, "Hi"))
        page.reload()
        answer = finished(page.locator(".turn.assistant"))
        assert page.locator(".turn .body").all_inner_texts() == ["Hi", "Kept."]
        assert "first after" in answer.locator(".meta").inner_text()
        page.click("#tokens-view")
        assert answer.locator(".tok").all_inner_texts()[:2] == ["K", "e"]
        finished(say(page, "And?"))
        assert bytes(engine.requests[-1].prompt_ids) == b"user: Hi\nassistant: Kept.\nuser: And?\nassistant: "
        assert "Kept." not in page.evaluate("() => JSON.stringify(localStorage)")
        page.click("#new-chat")
        page.reload()
        assert page.locator("#welcome").is_visible() and page.locator(".turn").count() == 0
        assert page.locator("#export-json").is_disabled()


def test_a_reload_within_an_answer_keeps_what_came(browser: Browser) -> None:
    engine = FakeEngine(says("Half of it."))
    engine.gate_at = 4
    with RunningServer(engine) as server, page_at(browser, server.url) as page:
        say(page, "Hi").get_by_text("Half").wait_for(timeout=LIMIT_MS)
        page.reload()
        answer = finished(page.locator(".turn.assistant"))
        assert answer.locator(".body").inner_text() == "Half"
        assert "cut by a reload" in answer.locator(".meta").inner_text()
        engine.open_gate()


def test_the_playground_shows_no_answer_to_another_request(browser: Browser) -> None:
    engine = FakeEngine(says('{"a": 1}'))
    with RunningServer(engine) as server, page_at(browser, f"{server.url}/playground") as page:
        page.click("#send")
        page.locator("#verdict.good").wait_for(timeout=LIMIT_MS)
        page.fill("#shape", "{")
        assert page.locator("#answer-title").inner_text() == "Answer to the request before"
        page.click("#send")
        assert page.locator("#answer").inner_text() == "" and page.locator("#request").inner_text() == ""
        assert "is not JSON" in page.locator("#verdict.bad").inner_text()
        assert page.evaluate("() => document.activeElement.id") == "shape"
        assert len(engine.requests) == 1


def test_routes_are_folded_on_a_phone_and_beside_the_text_elsewhere(browser: Browser) -> None:
    with RunningServer(FakeEngine()) as server, page_at(browser, f"{server.url}/reference", size=PHONE) as page:
        page.locator("#post--v1-chat-completions").wait_for(timeout=LIMIT_MS)
        summary = page.locator("#routes > summary")
        count = page.locator(".operation").count()
        assert summary.inner_text() == f"{count} routes" and page.locator("#contents").is_hidden()
        summary.click()
        cut = page.locator("#contents").evaluate("list => list.scrollHeight - list.clientHeight")
        assert page.locator("#contents a:visible").count() == count and cut == 0
        page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
        assert summary.is_hidden() and page.locator("#contents").is_visible()
        page.fill("#filter", "no such words")
        assert page.locator("#found").inner_text() == "No route has that"


def test_an_error_is_shown_in_words(browser: Browser) -> None:
    engine = FakeEngine(says("x" * 50))
    engine.fail_at = 3
    with RunningServer(engine) as server, page_at(browser, server.url) as page:
        answer = finished(say(page, "Hi"))
        assert "page 7 was lost" in answer.locator(".error").inner_text()
        assert page.locator("#send").is_visible()


def test_a_conversation_is_exported(browser: Browser) -> None:
    with RunningServer(FakeEngine(says("Exported."))) as server, page_at(browser, server.url) as page:
        finished(say(page, "Hi"))
        with page.expect_download() as waiting:
            page.click("#export-json")
        exported = json.loads(waiting.value.path().read_text())
        assert exported["model"] == "tiny"
        assert [turn["content"] for turn in exported["messages"]] == ["Hi", "Exported."]
        assert [token["token"] for token in exported["messages"][1]["logprobs"]][:3] == ["E", "x", "p"]
        assert exported["messages"][1]["timing"]["tokens"] == 10
        with page.expect_download() as waiting:
            page.click("#export-text")
        assert waiting.value.path().read_text() == "**You**\n\nHi\n\n---\n\n**tiny**\n\nExported.\n"
        page.click("#new-chat")
        assert page.locator(".turn").count() == 0 and page.locator("#welcome").is_visible()


def test_the_reference_is_the_servers_own_document(browser: Browser) -> None:
    with RunningServer(FakeEngine()) as server, page_at(browser, f"{server.url}/reference") as page:
        box = page.locator("#post--v1-chat-completions")
        box.wait_for(timeout=LIMIT_MS)
        assert box.locator(".field > div > code", has_text="temperature").count() == 1
        body = box.locator(".fields").first
        assert body.locator(":scope > .field > div > code").all_inner_texts()[:2] == ["model", "messages"]
        assert "0 takes the likeliest token. Default: 1." in body.inner_text()
        assert "object" not in " ".join(page.locator("summary").all_inner_texts()).split()
        box.locator("summary", has_text="ChatMessage").click()
        assert box.locator("details .field code", has_text="role").first.is_visible()
        assert server.url in box.locator(".curl").inner_text()
        assert "list of ChatMessage · 1 to 4096 items" in box.inner_text()
        page.fill("#filter", "detokenize")
        assert page.locator(".operation:visible h2").all_inner_texts() == ["POST\n/detokenize"]


def test_the_playground_sends_what_it_shows(browser: Browser) -> None:
    engine = FakeEngine(says('{"a": 1}'))
    with RunningServer(engine) as server, page_at(browser, f"{server.url}/playground") as page:
        page.select_option("#mode", "text")
        page.fill("#prompt", "Speak.")
        page.click("#send")
        page.locator("#verdict.good").wait_for(timeout=LIMIT_MS)
        assert page.locator("#answer").inner_text() == '{"a": 1}'
        assert json.loads(page.locator("#request").inner_text())["messages"] == [{"role": "user", "content": "Speak."}]
        page.select_option("#mode", "json_schema")
        page.fill("#shape", "{")
        assert "is not JSON" in page.locator("#verdict.bad").inner_text()


def test_nothing_sticks_out_and_everything_has_a_name(browser: Browser) -> None:
    with RunningServer(FakeEngine()) as server:
        for path in ("/", "/playground", "/reference"):
            with page_at(browser, server.url + path) as page:
                page.wait_for_load_state("networkidle")
                nameless = page.locator("button, input, textarea, select, a").evaluate_all(
                    "all => all.filter(it => !it.innerText && !it.ariaLabel && !it.labels?.length).map(it => it.id)"
                )
                assert nameless == []
                for size in ((320, 568), PHONE, DESKTOP):
                    page.set_viewport_size({"width": size[0], "height": size[1]})
                    wide = page.evaluate("() => document.documentElement.scrollWidth")
                    assert wide <= size[0], (path, size)


def test_what_was_not_answered_is_not_sent_again(browser: Browser) -> None:
    engine = FakeEngine(says("Good."))
    engine.fail_at = 0
    with RunningServer(engine) as server, page_at(browser, server.url, expected="503 (Service Unavailable)") as page:
        finished(say(page, "lost"))
        engine.fail_at = None
        finished(say(page, "again"))
        assert bytes(engine.requests[-1].prompt_ids).decode() == "user: again\nassistant: "
        page.get_by_role("button", name="Try again").click()
        finished(page.locator(".turn.assistant").nth(1))
        assert page.locator(".turn").count() == 4
        assert engine.requests[-1].prompt_ids == engine.requests[-2].prompt_ids


def test_the_page_waits_for_the_model_and_tells_how_far_it_is(browser: Browser) -> None:
    engine = FakeEngine(says("Here."))
    engine.start_gate = threading.Event()
    starting = "503 (Service Unavailable)"
    with RunningServer(engine, wait=False) as server, page_at(browser, server.url, expected=starting) as page:
        page.get_by_text("weights, 50 %").wait_for(timeout=LIMIT_MS)
        assert page.locator("#welcome-model").inner_text() == "The model is being loaded"
        engine.start_gate.set()
        assert finished(say(page, "Hi")).locator(".body").inner_text() == "Here."


def test_a_server_that_goes_away_is_told(browser: Browser) -> None:
    engine = FakeEngine()
    with RunningServer(engine) as server, page_at(browser, server.url, expected="Failed to load") as page:
        finished(say(page, "Hi"))
        server.call(_die(engine))
        answer = finished(say(page, "Still there?"))
        assert "the GPU fell off" in answer.locator(".error").inner_text()
        page.reload()
        page.locator("#notice-text", has_text="The engine has failed: the GPU fell off").wait_for(timeout=LIMIT_MS)


async def _die(engine: FakeEngine) -> None:
    engine.die("the GPU fell off")
