"""A reporter that posts what happened, as JSON, to the webhook of a chat: ../chat-reporter in Python."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import description, reporter
from wit_world.exports.reporter import Kind
from wit_world.imports import http, secrets, settings

HEADLINES = {
    Kind.EVALUATION_SUCCEEDED: "evaluation succeeded",
    Kind.EVALUATION_FAILED: "evaluation failed",
    Kind.BUILDS_SUCCEEDED: "everything is built",
    Kind.BUILDS_FAILED: "builds failed",
}


class Description(exports.Description):
    def describe(self) -> description.Description:
        return description.Description(
            name="chat-reporter-py",
            version="0.1.0",
            summary="Posts what happened to a chat's webhook.",
            settings=[description.Parameter("url", "Where to post.", True)],
            secrets=[description.Parameter("token", "Sent as bearer token.", True)],
            hosts=[],
        )


class Reporter(exports.Reporter):
    def report(self, event: reporter.Event) -> None:
        url = settings.get("url")
        if url is None:
            raise Err(reporter.Error_Denied("the setting `url` is missing"))
        lines = [f"{event.project} {event.branch}: {HEADLINES[event.kind]}"]
        lines += [f"• {failure.attr}: {failure.message}" for failure in event.failures]
        response = post(url, event.key, {"text": "\n".join(lines), "link": event.url})
        if response.status == 429 or response.status >= 500:
            raise Err(reporter.Error_Unavailable(f"HTTP {response.status}"))
        if response.status >= 300:
            raise Err(reporter.Error_Denied(f"HTTP {response.status}"))


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
