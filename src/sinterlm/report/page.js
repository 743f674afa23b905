// The browser of prompts. Answers are untrusted: every text goes onto the page as text, never as markup.
"use strict";
(() => {
  const PAGE_SIZE = 20;
  const SUMMARY_LENGTH = 120; // longer questions may be cut in the list, so they are shown whole when opened
  const PARTS = { sft: "SFT", preference: "preference", development: "development", held_out: "held out" };
  const prompts = JSON.parse(document.getElementById("prompt-data").textContent);
  const form = document.getElementById("filter");
  const list = document.getElementById("prompt-list");
  const fields = ["q", "part", "family", "outcome"];
  let page = 0;

  /** An element with its class and its children: elements, or strings that become text. */
  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  function text(content) {
    const element = make("div", "text", content);
    element.dir = "auto";
    return element;
  }

  function addOptions(name, values, label = (value) => value) {
    for (const value of [...new Set(values)].filter(Boolean)) {
      const option = make("option", "", label(value));
      option.value = value;
      form.elements[name].append(option);
    }
  }

  function question(prompt) {
    return prompt.messages.findLast((message) => message.role === "user")?.content ?? prompt.messages.at(-1)?.content ?? "";
  }

  /** All that the search looks through, put together once a prompt. */
  function haystack(prompt) {
    prompt.haystack ??= [
      prompt.id,
      ...prompt.messages.map((message) => message.content),
      ...prompt.accepted,
      ...prompt.heldOut.map((answer) => answer.text),
      ...prompt.samples.map((answer) => answer.text),
    ].join("\n").toLowerCase();
    return prompt.haystack;
  }

  function matches(prompt, wanted) {
    return (!wanted.part || prompt.part === wanted.part)
      && (!wanted.family || prompt.family === wanted.family)
      && (!wanted.outcome || prompt.outcomes.includes(wanted.outcome))
      && (!wanted.q || haystack(prompt).includes(wanted.q.toLowerCase()));
  }

  function verdict(answer) {
    if (answer.passed === null) return answer.score === null ? "no score" : String(answer.score);
    return make("span", answer.passed ? "pass" : "fail", answer.passed ? "✓ pass" : "✗ fail");
  }

  function dropText(drop) {
    return `${drop.stage}: ${drop.reason}${drop.detail ? ` (${drop.detail})` : ""}`;
  }

  function notes(answer) {
    const found = answer.roles.map((role) => make("span", `role ${role.includes("rejected") ? "rejected" : "chosen"}`, role));
    if (answer.finish === "length") found.push(make("span", "role warn", "cut by the token limit"));
    found.push(...answer.dropped.map((drop) => make("span", "role warn", `dropped at ${dropText(drop)}`)));
    return found;
  }

  function answerTable(caption, answers, isSampled) {
    const heads = ["model", ...(isSampled ? ["sample"] : []), "answer", "score", "tokens", ...(isSampled ? ["role"] : [])];
    const header = make("tr", "", ...heads.map((head) => {
      const cell = make("th", "", head);
      cell.scope = "col";
      return cell;
    }));
    const rows = answers.map((answer) => make("tr", "",
      make("td", "", make("span", `model ${answer.kind}`, answer.model)),
      ...(isSampled ? [make("td", "number", String(answer.index))] : []),
      make("td", "", text(answer.text || "(empty)")),
      make("td", "", verdict(answer)),
      make("td", "number", answer.tokens ? String(answer.tokens) : ""),
      ...(isSampled ? [make("td", "", ...notes(answer))] : []),
    ));
    const table = make("table", "", make("caption", "", caption), make("thead", "", header), make("tbody", "", ...rows));
    const scroll = make("div", "scroll", table);
    scroll.tabIndex = 0;
    return scroll;
  }

  function body(prompt) {
    const parts = [make("p", "facts", `id ${prompt.id}`)];
    if (prompt.messages.length > 1 || question(prompt).length > SUMMARY_LENGTH) {
      parts.push(...prompt.messages.map((message) => make("div", "turn", make("b", "", message.role), text(message.content))));
    }
    if (prompt.accepted.length) parts.push(make("p", "", "Accepted: ", make("strong", "", prompt.accepted.join(" · "))));
    parts.push(...prompt.dropped.map((drop) => make("p", "warn", `Dropped at ${dropText(drop)}`)));
    if (prompt.heldOut.length) parts.push(answerTable("Held-out answers, greedy", prompt.heldOut, false));
    if (prompt.samples.length) parts.push(answerTable("Sampled answers", prompt.samples, true));
    if (!prompt.heldOut.length && !prompt.samples.length) parts.push(make("p", "missing", "No answers."));
    return make("div", "body", ...parts);
  }

  function facts(prompt) {
    const passing = prompt.samples.filter((answer) => answer.passed).length;
    const isChecked = prompt.samples.some((answer) => answer.passed !== null);
    return [
      PARTS[prompt.part],
      prompt.family,
      isChecked ? `${passing} of ${prompt.samples.length} samples pass` : "",
      prompt.outcomes.includes("gained") ? "gained by fusion" : "",
      prompt.outcomes.includes("lost") ? "lost by fusion" : "",
      prompt.dropped.length ? "dropped" : "",
    ].filter(Boolean).join(" · ");
  }

  function item(prompt, isOpen) {
    const details = make("details", "prompt",
      make("summary", "", make("span", "question", question(prompt)), make("span", "facts", facts(prompt))));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(body(prompt));
    });
    if (isOpen) {
      details.append(body(prompt));
      details.open = true;
    }
    return details;
  }

  function show() {
    const wanted = Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));
    const found = prompts.filter((prompt) => matches(prompt, wanted));
    const lastPage = Math.max(0, Math.ceil(found.length / PAGE_SIZE) - 1);
    page = Math.min(Math.max(page, 0), lastPage);
    const start = page * PAGE_SIZE;
    const visible = found.slice(start, start + PAGE_SIZE);
    list.replaceChildren(...visible.map((prompt) => item(prompt, found.length === 1)));
    if (!found.length) list.append(make("p", "missing", "No prompt matches this filter."));
    document.getElementById("position").textContent = found.length
      ? `${start + 1} to ${start + visible.length} of ${found.length}`
      : "0 of 0";
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = page === lastPage;
    const state = new URLSearchParams(Object.entries({ ...wanted, page: page ? String(page + 1) : "" }).filter(([, value]) => value));
    if (state.size || location.hash.includes("=")) history.replaceState(null, "", `#${state}`);
  }

  /** The address may hold a filter, as in #q=paris&family=capital&page=2; other fragments are the page's sections. */
  function readAddress() {
    if (location.hash && !location.hash.includes("=")) return;
    const state = new URLSearchParams(location.hash.slice(1));
    for (const name of fields) form.elements[name].value = state.get(name) ?? "";
    page = (Number.parseInt(state.get("page") ?? "1", 10) || 1) - 1;
  }

  function turn(step) {
    page += step;
    show();
    form.scrollIntoView();
  }

  addOptions("part", prompts.map((prompt) => prompt.part), (part) => PARTS[part]);
  addOptions("family", prompts.map((prompt) => prompt.family).sort());
  readAddress();
  show();
  if (location.hash.includes("=")) document.getElementById("prompts").scrollIntoView();

  let pending;
  form.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(() => { page = 0; show(); }, 150);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("previous").addEventListener("click", () => turn(-1));
  document.getElementById("next").addEventListener("click", () => turn(1));
  window.addEventListener("hashchange", () => { readAddress(); show(); });
})();
