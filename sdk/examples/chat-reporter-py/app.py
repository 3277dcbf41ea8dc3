"""A reporter that posts what happened, as JSON, to the webhook of a chat: ../chat-reporter in Python."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import description, reporter
from wit_world.exports.reporter import Kind
from wit_world.imports import http, secrets, settings


class Description(exports.Description):
    def describe(self) -> description.Description:
        return description.Description(
            name="chat-reporter-py",
            version="0.1.0",
            summary="Posts failures and repairs to a chat's webhook.",
            settings=[
                description.Parameter("url", "Where to post.", True),
                description.Parameter("all", "`true`: post successes too.", False),
            ],
            secrets=[description.Parameter("token", "Sent as bearer token.", True)],
            hosts=[],
        )


class Reporter(exports.Reporter):
    def report(self, event: reporter.Event) -> None:
        if not is_news(event) and settings.get("all") != "true":
            return
        url = settings.get("url")
        if url is None:
            raise Err(reporter.Error_Denied("the setting `url` is missing"))
        lines = [headline(event)] + [f"• {failure.attr}: {failure.message}" for failure in event.failures]
        check(post(url, event.key, {"text": "\n".join(lines), "link": event.url}))


def is_news(event: reporter.Event) -> bool:
    """A failure, or the first success after one."""
    repaired = event.kind == Kind.BUILDS_SUCCEEDED and event.failed_before is True
    return repaired or event.kind in (Kind.EVALUATION_FAILED, Kind.BUILDS_FAILED)


def headline(event: reporter.Event) -> str:
    place = f"#{event.pull_request}" if event.pull_request is not None else event.branch
    builds = event.succeeded + event.failed
    what = {
        Kind.EVALUATION_SUCCEEDED: "evaluation succeeded",
        Kind.EVALUATION_FAILED: "evaluation failed",
        Kind.BUILDS_SUCCEEDED: f"all {builds} builds succeeded",
        Kind.BUILDS_FAILED: f"{event.failed} of {builds} builds failed",
    }[event.kind]
    title = f" ({event.title})" if event.title else ""
    return f"{event.project} {place}: {what}{title}"


def check(response: http.Response) -> None:
    """Turns a status that is no success into the error that says whether and when to try again."""
    status = response.status
    if 200 <= status < 300:
        return
    waits = [header.value for header in response.headers if header.name == "retry-after"]
    wait = waits[0] if waits else "60" if status == 429 else ""
    if status in (403, 429, 503) and wait.isdecimal():
        raise Err(reporter.Error_RetryAfter(int(wait)))
    if status in (401, 402, 403, 404, 407, 410, 451):
        raise Err(reporter.Error_Denied(f"HTTP {status}"))
    if status >= 500 or status in (408, 425):
        raise Err(reporter.Error_Unavailable(f"HTTP {status}"))
    raise Err(reporter.Error_Invalid(f"HTTP {status}"))


def post(url: str, key: str, message: dict) -> http.Response:
    try:
        bearer = http.Place_Header(http.Header("authorization", "Bearer "))
        return http.send(
            http.Request(
                method=http.Method.POST,
                url=url,
                headers=[http.Header("content-type", "application/json"), http.Header("idempotency-key", key)],
                body=json.dumps(message).encode(),
                auth=[http.Auth(secrets.open("token"), bearer)],
                capture=[],
            )
        )
    except Err as error:
        raise Err(to_report(error.value)) from error


def to_report(error: http.HttpError | secrets.SecretError) -> reporter.Error:
    match error:
        case http.HttpError_RetryAfter(seconds):
            return reporter.Error_RetryAfter(seconds)
        case http.HttpError_Denied(text) | secrets.SecretError_NotGranted(text) | secrets.SecretError_Unusable(text):
            return reporter.Error_Denied(text)
        case http.HttpError_Invalid(text) | http.HttpError_Limit(text):
            return reporter.Error_Invalid(text)
        case _:
            return reporter.Error_Unavailable(str(error))
