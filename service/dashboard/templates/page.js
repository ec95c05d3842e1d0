"use strict";
// Ask for the fragment every 2 s while the page is seen, and change only what differs, so that
// scroll, focus, selection and open details stay as they are.
const EVERY_MS = 2000, PATIENCE_MS = 10000;
const main = document.getElementById("status"), lost = document.getElementById("lost");
const link = document.getElementById("link"), linkText = document.getElementById("link-text");
let etag = main.dataset.etag, good = new Date(), asking = false, timer = 0;

function ago(at) {
  const s = Math.round((Date.now() - at) / 1000), n = Math.abs(s);
  const [many, unit] = n < 90 ? [1, "s"] : n < 5400 ? [60, "min"] : n < 129600 ? [3600, "h"] : [86400, "days"];
  const words = n < 60 ? (s < 0 ? "under a minute" : "a moment") : Math.round(n / many) + " " + unit;
  return s < 0 ? "in " + words : words + " ago";
}

function ages(root) {
  for (const time of root.querySelectorAll("time")) {
    time.dataset.at ||= time.textContent;
    const text = time.dataset.at + " (" + ago(new Date(time.dateTime)) + ")";
    if (time.textContent !== text) time.textContent = text;
  }
}

function merge(fresh) {
  const focused = document.activeElement?.id;
  for (const old of main.querySelectorAll("details")) {
    const next = fresh.getElementById(old.id);
    if (next) next.open = old.open;
  }
  ages(fresh);
  let at = main.firstElementChild;
  for (const next of [...fresh.body.children]) {
    let now = document.getElementById(next.id);
    if (now && !now.isEqualNode(next)) {
      now.replaceWith(next);
      if (at === now) at = next;
      now = next;
    }
    now ||= next;
    if (now === at) at = at.nextElementSibling;
    else main.insertBefore(now, at);
  }
  while (at) {
    const gone = at;
    at = at.nextElementSibling;
    gone.remove();
  }
  if (focused && document.activeElement?.id !== focused)
    document.getElementById(focused)?.focus({ preventScroll: true });
}

function show(problem) {
  const clock = good.toLocaleTimeString();
  document.body.classList.toggle("stale", problem !== "");
  const text = problem && problem + " What you see is from " + clock + ".";
  if (lost.textContent !== text) lost.textContent = text;
  lost.hidden = !problem;
  link.hidden = problem !== "";
  linkText.textContent = "live, checked " + clock;
}

async function refresh() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const answer = await fetch("status", {
      headers: { "If-None-Match": etag }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (answer.status === 200) {
      const text = await answer.text();
      merge(new DOMParser().parseFromString(text, "text/html"));
      etag = answer.headers.get("ETag");
    }
    if (answer.ok || answer.status === 304) {
      good = new Date();
      show("");
    } else if (answer.status === 401) show("This server asks for a valid token again: reload the page.");
    else show("The server answers with error " + answer.status + ".");
  } catch {
    show("The server cannot be reached.");
  }
  ages(main);
  asking = false;
  clearTimeout(timer);
  timer = setTimeout(refresh, EVERY_MS);
}

document.addEventListener("visibilitychange", refresh);
ages(main);
refresh();
