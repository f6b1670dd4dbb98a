// Samples from training: groups of outputs with their rewards and advantages.

const WHY = { first: "first", last: "last", best: "best", worst: "worst", changed: "most changed" };

function groupItems(groups) {
  const rewards = groups.flatMap((group) => group.outputs.map((output) => output.reward)).filter(isNumber);
  const scale = {
    low: rewards.reduce((a, b) => Math.min(a, b), Infinity),
    high: rewards.reduce((a, b) => Math.max(a, b), -Infinity),
    lean: groups.flatMap((group) => group.outputs.map((output) => Math.abs(output.advantage ?? 0))).reduce((a, b) => Math.max(a, b), 0),
  };
  const families = new Map();
  groups.forEach((group, key) => {
    const name = group.task ?? group.prompt;
    families.set(name, [...(families.get(name) ?? []), { key, step: group.step }]);
  });
  return groups.map((group, key) => {
    const known = group.outputs.map((output) => output.reward).filter(isNumber);
    const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    return {
      key, group, mean,
      range: known.length ? Math.max(...known) - Math.min(...known) : 0,
      words: [group.task ?? "", group.prompt, `step ${group.step}`, ...(group.messages ?? []).map((turn) => turn.text),
        ...group.outputs.flatMap((output) => [output.text, output.error ?? "", ...wordsOfTurns(output)])].join("\n").toLowerCase(),
      row: () => groupRow(group, mean, known, scale),
      detail: (words, jump) => groupDetail(group, scale, words, families.get(group.task ?? group.prompt), key, jump),
    };
  });
}

function groupRow(group, mean, known, scale) {
  return [
    el("span", { class: "step" }, String(group.step)),
    el("span", { class: "line" }, firstLine(group)),
    strip(known, scale.low, scale.high),
    el("span", { class: "value" }, num(mean, 2)),
  ];
}

function firstLine(group) {
  const text = gist(group.prompt);
  return (group.task ? `${group.task} · ${text}` : text).slice(0, 160).replace(/\s+/g, " ");
}

// What tells one task from the others: the latest words of a user, or the first text of a task's fields.
function gist(prompt) {
  if (/^\[(system|developer|user)\]\n/.test(prompt)) {
    const asked = prompt.split(/(?:^|\n\n)\[user\]\n/).at(-1);
    return asked.split(/\n\n\[(?:system|developer|assistant|tool)[^\]\n]*\]\n/)[0] || prompt;
  }
  if (!prompt.startsWith("{")) return prompt;
  try {
    const texts = Object.values(JSON.parse(prompt)).filter((value) => typeof value === "string");
    return texts.find((text) => /\s/.test(text.trim())) ?? prompt;
  } catch {
    return prompt; // shortened, or not JSON
  }
}

function groupDetail(group, scale, words, family, key, jump) {
  const ordered = group.outputs.toSorted((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
  const others = family.filter((one) => one.key !== key);
  return el("article", {},
    el("p", { class: "meta" }, `Step ${group.step}`, group.task ? ` · ${group.task}` : "",
      group.why.filter((why) => WHY[why]).map((why) => el("span", { class: "tag" }, WHY[why]))),
    others.length ? el("p", { class: "meta" }, "The same prompt at step ",
      others.slice(0, 12).map((one) => [el("button", { type: "button", class: "link", on: { click: () => jump(one.key) } }, String(one.step)), " "])) : null,
    el("h4", {}, isEpisodes(group) ? "Task" : "Prompt"), prompt(group, words),
    el("h4", {}, plural(ordered.length, isEpisodes(group) ? "episode" : "output"), group.left_out ? ` (${group.left_out} between them left out)` : "", ", best first"),
    isEpisodes(group) ? episodes(ordered, scale, words)
      : el("ol", { class: "outputs" }, ordered.map((output) => oneOutput(output, scale, words))));
}

function prompt(group, words) {
  if (!group.messages) return el("pre", { class: "text prompt" }, marked(group.prompt, words));
  return el("div", { class: "chat" }, group.messages.map((turn) => el("div", { class: "turn" },
    el("span", { class: "role" }, turn.role),
    turn.text ? el("pre", { class: "text" }, marked(turn.text, words)) : null,
    (turn.calls ?? []).map((call) => toolCall(call.name, named(call.arguments), words)))));
}

function oneOutput(output, scale, words) {
  const parts = Object.entries(output.rewards);
  const share = scale.high > scale.low && isNumber(output.reward) ? (output.reward - scale.low) / (scale.high - scale.low) : 0;
  return el("li", {},
    el("div", { class: "worth" },
      el("span", { class: "total" }, output.reward === null ? "skipped" : num(output.reward)),
      svg("svg", { class: "meter", viewBox: "0 0 80 6", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("rect", { class: "rail", width: 80, height: 6 }), svg("rect", { class: "full", width: 80 * share, height: 6 })),
      isNumber(output.advantage) ? el("span", { class: "advantage", title: "advantage: how much better than the rest of its group" },
        lean(output.advantage, scale.lean), signed(output.advantage, 2)) : null),
    el("div", { class: "said" }, answer(output.text, words),
      el("p", { class: "chips" },
        parts.length ? parts.map(([name, value]) => el("span", { class: "chip" }, name, " ", el("b", {}, num(value)))) : null,
        output.tokens ? el("span", { class: "chip quiet" }, plural(output.tokens, "token")) : null,
        output.cut_off ? el("span", { class: "chip warn" }, "cut off") : null)));
}

function samplesSection(run) {
  const trainings = run.trainings.filter((training) => training.groups.length);
  if (!trainings.length) return null;
  const title = run.traces ? "Episodes" : "Samples";
  return section("samples", title, null, trainings.map((training) => {
    const items = groupItems(training.groups);
    const shown = training.groups.length === training.groups_in_all ? "All" : `${training.groups.length} of`;
    return [
      el("p", { class: "lead" }, `${shown} ${plural(training.groups_in_all, "group")}`,
        trainings.length > 1 ? ` of ${training.name}` : "",
        shown === "All" ? "." : run.traces ? ": first, last, best, worst and an even sample." : ": first, last, best, worst, most changed and an even sample. The others are in samples.jsonl."),
      browser({
        id: `samples-${run.trainings.indexOf(training)}`, items, hint: "Search prompts and outputs  ( / )",
        filters: {
          ...Object.fromEntries(Object.entries(WHY).map(([why, name]) => [name, (item) => item.group.why.includes(why)])),
          ...episodeFilters(training.groups),
        },
        sorts: {
          "by step": (a, b) => a.key - b.key,
          "latest first": (a, b) => b.key - a.key,
          "highest reward": (a, b) => (b.mean ?? -Infinity) - (a.mean ?? -Infinity),
          "lowest reward": (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity),
          "widest apart": (a, b) => b.range - a.range,
        },
        empty: { noun: "group", text: "No samples yet." },
      }),
    ];
  }));
}

// Every model's answers to the exam tasks.
function answersSection(run) {
  if (!run.tasks.length) return null;
  const { rows, percent, against } = run.exams;
  const base = rows.findIndex((row) => row.name === against);
  const last = rows.length - 1;
  const compared = rows.map((_, at) => at).filter((at) => at !== base);
  const focus = compared[Math.max(0, compared.length - 1)] ?? last;
  const judged = (task, at) => task.answers[at].score !== null && task.answers[base].score !== null;
  const better = (task, at) => judged(task, at) && task.answers[at].score > task.answers[base].score;
  const worse = (task, at) => judged(task, at) && task.answers[at].score < task.answers[base].score;
  const items = run.tasks.map((task, key) => ({
    key, task,
    words: [task.name ?? "", task.prompt, task.expected ?? "", ...task.answers.map((one) => one.text)].join("\n").toLowerCase(),
    row: () => [
      el("span", { class: "line" }, (task.name ? `${task.name} · ` : "") + gist(task.prompt).slice(0, 160).replace(/\s+/g, " ")),
      el("span", { class: "verdicts" }, task.answers.map((one) => verdict(one.score, percent))),
    ],
    detail: (words) => taskDetail(task, rows, percent, words),
  }));
  const filters = {};
  for (const at of compared) {
    filters[`${rows[at].name} better than ${against}`] = (item) => better(item.task, at);
    filters[`${rows[at].name} worse than ${against}`] = (item) => worse(item.task, at);
  }
  filters["all alike"] = (item) => new Set(item.task.answers.map((one) => one.score)).size === 1;
  return section("answers", "Answers", `What each model said to ${run.tasks.length === run.tasks_in_all ? "every" : `${run.tasks.length} of ${run.tasks_in_all}`} ${"held-out task"}${run.tasks.length === run.tasks_in_all ? "" : "s"}; the scores are in the order ${rows.map((row) => row.name).join(", ")}.`,
    browser({
      id: "answers", items, filters, hint: "Search tasks and answers",
      sorts: { "as asked": (a, b) => a.key - b.key, "biggest difference": (a, b) => gap(b.task, base, focus) - gap(a.task, base, focus) },
      empty: { noun: "task", text: "No tasks." },
    }));
}

const gap = (task, base, focus) => Math.abs(task.answers[focus].score - task.answers[base].score);

function verdict(score, percent) {
  if (score === null) return el("span", { class: "part", title: "could not be judged" }, "failed");
  if (percent && score === 1) return el("span", { class: "right", title: "right" }, "✓");
  if (percent && score === 0) return el("span", { class: "wrong", title: "wrong" }, "✗");
  return el("span", { class: "part" }, num(score, 2));
}

function taskDetail(task, rows, percent, words) {
  return el("article", {},
    task.name ? el("p", { class: "meta" }, task.name) : null,
    el("h4", {}, "Prompt"), el("pre", { class: "text prompt" }, marked(task.prompt, words)),
    task.expected ? [el("h4", {}, "A right answer"), answer(task.expected, words)] : null,
    el("h4", {}, "Answers"),
    el("ol", { class: "outputs" }, task.answers.map((one, at) => el("li", {},
      el("div", { class: "worth" }, el("span", { class: "who" }, rows[at].name), verdict(one.score, percent)),
      el("div", { class: "said" }, answer(one.text, words))))));
}
