// What moves on a page while something runs. Every page works without it.
"use strict";
(() => {
  const main = document.getElementById("main");
  const FAILURES_MAX = 60;

  // What the page showed when it came last: while the server has nothing else, it sends nothing.
  let tag = main?.dataset.tag ? '"' + main.dataset.tag + '"' : null;

  // Replaces the parts marked data-live by those of a fresh copy of the page; logs, forms and scroll position stay. Returns in how
  // many seconds to look again; undefined: as before.
  async function refresh() {
    const headers = { accept: "text/html" };
    if (tag) headers["if-none-match"] = tag;
    const answer = await fetch(location.href, { headers });
    if (answer.status === 304) return undefined;
    if (!answer.ok) throw new Error(String(answer.status));
    tag = answer.headers.get("etag");
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      if (!next || next.innerHTML === part.innerHTML) continue;
      if (part.contains(document.activeElement) || selects(part)) continue;
      for (const old of part.querySelectorAll("details[id]")) {
        const same = next.querySelector("#" + CSS.escape(old.id));
        if (same) same.open = old.open;
      }
      part.replaceChildren(...next.childNodes);
    }
    return Number(fresh.getElementById("main")?.dataset.refresh || 0);
  }

  function selects(part) {
    const selection = getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  }

  async function keepFresh() {
    let seconds = Number(main?.dataset.refresh || 0);
    let failures = 0;
    while (seconds > 0 && failures < FAILURES_MAX) {
      await new Promise((done) => setTimeout(done, seconds * 1000 * (1 + Math.min(failures, 9))));
      if (document.hidden) continue;
      try {
        seconds = (await refresh()) ?? seconds;
        failures = 0;
      } catch {
        failures += 1;
      }
    }
  }

  // Characters of a log that stay on the page; the whole is behind the link.
  const LOG_CHARACTERS = 400000;
  const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()].|.)/g;
  const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f]/g;

  function clean(text) {
    return text.replace(ESCAPES, "").replace(/\r\n/g, "\n").replace(/[^\n]*\r/g, "").replace(CONTROLS, "");
  }

  function follow(log) {
    const status = document.getElementById("log-status");
    const say = (text) => { if (status) status.textContent = text; };
    const from = log.dataset.position ? "?from=" + encodeURIComponent(log.dataset.position) : "";
    const source = new EventSource(log.dataset.stream + from);
    const append = (text) => {
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(text);
      while (log.childNodes.length > 1 && log.textContent.length > LOG_CHARACTERS) log.firstChild.remove();
      if (atEnd) log.scrollTop = log.scrollHeight;
    };
    source.onopen = () => say("· live");
    source.onerror = () => say("· reconnecting…");
    source.addEventListener("log", (event) => append(clean(JSON.parse(event.data).text)));
    source.addEventListener("gap", (event) => append("\n[" + JSON.parse(event.data).bytes + " bytes follow with the stored log]\n"));
    source.addEventListener("attempt", (event) => {
      if (log.textContent) append("\n[attempt " + JSON.parse(event.data).attempt + " begins]\n");
    });
    source.addEventListener("end", (event) => {
      source.close();
      say("· " + JSON.parse(event.data).status);
    });
  }

  const log = document.querySelector("pre[data-stream]");
  if (log) {
    log.scrollTop = log.scrollHeight;
    if (window.EventSource) follow(log);
  }
  keepFresh();
})();
