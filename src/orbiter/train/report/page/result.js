// Results: exams with intervals, what changed in training, and what happened to the data.

function resultSection(run) {
  // A comparison has its own table, whose intervals allow for its looks.
  const blocks = [tiles(run), run.comparison ? null : exams(run.exams), gains(run.trainings)].filter(Boolean);
  return blocks.length ? section("result", "Result", null, blocks) : null;
}

function tiles(run) {
  const main = run.trainings.findLast((training) => training.series.reward) ?? run.trainings[run.trainings.length - 1];
  const money = run.cost.money ? ["Cost", num(run.cost.money), run.cost.endpoint_tokens ? `for ${num(run.cost.endpoint_tokens)} tokens at endpoints` : "paid to endpoints"] : null;
  if (!main) return money && !run.comparison ? drawTiles([money]) : null;
  const finite = (name) => (main.series[name] ?? []).filter(isNumber);
  const all = (name) => run.trainings.flatMap((training) => (training.series[name] ?? []).filter(isNumber).map((value) => value * training.every));
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const reward = finite("reward");
  const tenth = Math.max(1, Math.floor(reward.length / 10));
  const mean = (values) => sum(values) / values.length;
  const facts = [
    reward.length > 1 ? ["Reward", [num(mean(reward.slice(0, tenth))), el("span", { class: "dim" }, " → "), num(mean(reward.slice(-tenth)))],
      `first and last ${plural(tenth * main.every, "step")}${run.trainings.length > 1 ? ` of ${main.name}` : ""}`] : null,
    ["Steps", num(sum(run.trainings.map((training) => training.steps[training.steps.length - 1] ?? 0))), run.trainings.map((training) => training.kind).filter((kind, at, kinds) => kinds.indexOf(kind) === at).join(" and ")],
    all("tokens").length ? ["Tokens", num(sum(all("tokens"))), "sampled or imitated"] : null,
    all("seconds").length ? ["Time", duration(sum(all("seconds"))), "in training steps"] : null,
    money,
    finite("tokens_per_second").length ? ["Speed", num(mean(finite("tokens_per_second"))), "tokens per second"] : null,
    finite("kl").length ? ["KL", num(finite("kl").at(-1)), "from the reference, at the end"] : null,
  ].filter(Boolean);
  return drawTiles(facts);
}

function drawTiles(facts) {
  return el("dl", { class: "tiles" }, facts.map(([name, value, note]) => el("div", {}, el("dt", {}, name), el("dd", {}, value), el("dd", { class: "note" }, note))));
}

function exams(doc) {
  if (!doc) return null;
  const draw = forest(doc.rows, doc.percent);
  const rows = doc.rows.map((row) => {
    const base = row.name === doc.against;
    return [
      [row.name, row.note ? el("span", { class: "dim" }, ` ${row.note}`) : ""],
      draw(row.score, base ? "base" : "c0"),
      { number: ranged(row.score, doc.percent) },
      { number: row.gain ? [ranged(row.gain, doc.percent, true), sure(row.gain)] : "–" },
    ];
  });
  const unit = doc.percent ? ", points" : "";
  return [
    table(["model", "", { number: doc.measure }, { number: `against ${doc.against}${unit}` }], rows, { label: "Exams", kind: "exams" }),
    el("p", { class: "note" }, `Over ${plural(doc.rows[0].score[3], "task")}. Brackets contain 95 % intervals; differences are paired, task by task. A difference whose interval contains 0 may be chance.`),
  ];
}

function sure([, low, high]) {
  if (low === null) return null;
  const clear = low > 0 || high < 0;
  return el("span", { class: clear ? "sure" : "unsure" }, clear ? " clear" : " unclear");
}

function gains(trainings) {
  const rows = trainings.flatMap((training) => [...training.validations, ...training.gains].map((row) => ({ ...row, of: training.name })));
  if (!rows.length) return null;
  const body = rows.map((row) => [
    [row.what, trainings.length > 1 ? el("span", { class: "dim" }, ` ${row.of}`) : ""], { number: ranged(row.before) }, { number: ranged(row.after) },
    { number: row.gain ? [ranged(row.gain, false, true), sure(row.gain)] : "–" },
  ]);
  return [
    el("h3", {}, "Before and after"),
    table(["", { number: "before" }, { number: "after" }, { number: "difference" }], body, { label: "Before and after", kind: "gains" }),
    el("p", { class: "note" }, "Validation rows compare the first and the last validation; the others the first and last fifth of the steps, a prompt counting once. Brackets contain 95 % intervals; differences are of the prompts in both, paired."),
  ];
}

function ledgerSection(run) {
  if (!run.ledger.length) return null;
  const most = Math.max(...run.ledger.map((step) => step.kept + lost(step)), 1);
  return section("data", "Data", "How many items each step kept, and why it dropped the others.",
    el("ol", { class: "ledger" }, run.ledger.map((step) => el("li", {},
      el("div", { class: "stage" }, el("b", {}, step.name), step.note ? el("span", { class: "dim" }, ` ${step.note}`) : ""),
      svg("svg", { class: "flow", "aria-hidden": "true" },
        svg("rect", { class: "kept", width: `${(100 * step.kept) / most}%`, height: 12 }),
        svg("rect", { class: "lost", x: `${(100 * step.kept) / most}%`, width: `${(100 * lost(step)) / most}%`, height: 12 })),
      el("div", { class: "counts" }, el("b", {}, num(step.kept)), " kept",
        Object.entries(step.dropped).map(([reason, count]) => el("span", { class: "chip quiet" }, `${num(count)} ${reason}`)))))));
}

const lost = (step) => Object.values(step.dropped).reduce((a, b) => a + b, 0);
