// The curves of one training, or of two overlaid.

// The contents of each chart: names of metrics, or their common prefix.
const PANELS = [
  { title: "Reward", names: ["reward", "eval/reward"], band: { reward: "reward_std" }, note: "Mean over a step's samples; the band is one standard deviation. Points are validations." },
  { title: "Rewards by component", prefix: "reward/", several: true },
  { title: "Reward and gold", prefix: "gold/", several: true, note: "Both on the same held-out tasks. Where the reward (proxy) rises and the more trusted one does not, the reward is being gamed." },
  { title: "Loss", names: ["loss", "eval/loss"], note: (kind) => (kind === "GRPO" ? "Near 0 by construction in GRPO: the advantages of a group sum to 0." : null) },
  { title: "Accuracy", names: ["accuracy", "eval/accuracy"], note: (kind) => (PAIRED.has(kind) ? "Share of pairs whose better answer has the higher implicit reward." : kind === "reward model" ? "Share of pairs whose better answer has the higher score; 0.5 is chance." : null) },
  { title: "Margin", names: ["margin", "eval/margin"], note: (kind) => (kind === "reward model" ? "Score of the better answer minus that of the worse one." : "Implicit reward of the better answer minus that of the worse one.") },
  { title: "Agreement", names: ["eval/agreement"], note: "Kendall's tau between scores and rewards within a task." },
  { title: "Calibration", names: ["eval/calibration_error", "eval/calibration_error_by_chance"], label: { "eval/calibration_error": "expected calibration error", "eval/calibration_error_by_chance": "by chance alone" } },
  { title: "Scores", more: true, names: ["score", "score_spread"], label: { score: "mean", score_spread: "root mean square" }, note: "Of a reward model; only differences matter to its loss." },
  { title: "Implicit rewards", names: ["chosen_reward", "rejected_reward"], label: { chosen_reward: "better answers", rejected_reward: "worse answers" } },
  { title: "KL", names: ["kl", "approx_kl"], label: { kl: "from the reference", approx_kl: "within the step" }, note: "Nats per token." },
  { title: "Divergence from the teacher", names: ["divergence", "eval/divergence"], note: "Nats per token, on the policy's own samples. Points are validations." },
  { title: "Entropy", names: ["entropy"], note: "Nats per token; near 0 the model no longer explores." },
  { title: "Length", names: ["length", "eval/length"], note: "Mean tokens per output." },
  { title: "Turns per episode", names: ["turns", "eval/turns"], note: "Answers of the policy in an episode; failed episodes are left out." },
  { title: "Tool calls per episode", names: ["tool_calls", "bad_calls"], label: { tool_calls: "calls", bad_calls: "repeated or invalid" } },
  { title: "Failed episodes", names: ["failed"], note: "Share of a step's episodes that failed for a reason that says nothing about the policy; they are not trained on." },
  { title: "Failures by kind", prefix: "failed/", note: "Episodes of a step." },
  { title: "Episodes that ran into a limit", prefix: "stopped/", note: "Episodes of a step that ran out of turns, tokens or context, or whose agent raised after an answer that was cut off." },
  { title: "Clip fraction", names: ["clip_fraction"], note: "Share of tokens whose ratio left the clip range." },
  { title: "Speed", names: ["tokens_per_second"], label: { tokens_per_second: "tokens per second" } },
  { title: "Validation by component", prefix: "eval/reward/", several: true, more: true },
  { title: "Cut off", more: true, names: ["cut_off", "eval/cut_off"], note: "Share of outputs that reached the length limit." },
  { title: "Groups without signal", more: true, names: ["flat_groups"], note: "Share of groups whose rewards were all equal, so nothing could be learned from them." },
  { title: "Difficulty pools", more: true, names: ["pool/solved", "pool/unsolved"], label: { "pool/solved": "solved by all samples", "pool/unsolved": "solved by none" }, note: "Share of all tasks that are asked less often." },
  { title: "Turns passed over", more: true, names: ["pool/passed_over"], note: "Turns of a step that went from a task of a pool to another task." },
  { title: "Long answers", more: true, names: ["overlong", "overlong_penalty"], label: { overlong: "share with a penalty", overlong_penalty: "mean penalty" } },
  { title: "Streams per episode", more: true, names: ["streams"], note: "1 where every turn continues the one before." },
  { title: "Prompt tokens run", more: true, names: ["prompt_run_share"], note: "Share of the prompt tokens that the model really ran; the others were cached." },
  { title: "Log probability of an answer", more: true, names: ["chosen_logprob", "rejected_logprob"], label: { chosen_logprob: "better answers", rejected_logprob: "worse answers" }, note: "Summed over its tokens, in nats. With DPO both often fall." },
  { title: "Gradient norm", more: true, names: ["grad_norm"], note: "Before clipping." },
  { title: "Learning rate", more: true, names: ["learning_rate"] },
  { title: "Value", more: true, names: ["value", "explained_variance"] },
  { title: "Verdicts by order shown", prefix: "order_effect/", more: true, note: "Correlation of a group judge's scores with the place in which it saw the samples; 0 for a judge that ignores it." },
  { title: "Samples without a verdict", prefix: "left_out/", more: true, note: "Left out of the gradient, by cause." },
  { title: "Cost of the judges", names: ["judge_cost"], more: true, note: "Since the run began." },
  { title: "Calls of the judges", names: ["judge_calls", "judge_cached"], more: true, label: { judge_calls: "calls", judge_cached: "answers from the cache" } },
  { title: "Seconds per step", names: ["seconds"], more: true },
  { title: "Policy loss", names: ["pg_loss"], more: true },
  { title: "Value loss", names: ["vf_loss"], more: true },
];
const HIDDEN = new Set(["reward_std", "reward_faults", "tokens", "eval/reward_low", "eval/reward_high", "eval/reward_std", "eval/reward_faults", "eval/tokens", "eval/accuracy_low", "eval/accuracy_high", "eval/margin_low", "eval/margin_high", "eval/pairs", ...["brier", "calibration_error", "agreement"].flatMap((name) => [`eval/${name}_low`, `eval/${name}_high`])]);
const PAIRED = new Set(["DPO", "IPO", "ORPO", "SIMPO"]);

function panels(names) {
  const left = new Set(names.filter((name) => !HIDDEN.has(name)));
  const found = PANELS.map((panel) => {
    const mine = panel.prefix ? [...left].filter((name) => name.startsWith(panel.prefix)) : panel.names.filter((name) => left.has(name));
    mine.forEach((name) => left.delete(name));
    return { ...panel, mine };
  }).filter((panel) => panel.mine.length && !(panel.several && panel.mine.length < 2));
  return [...found, ...[...left].map((name) => ({ title: name.replaceAll("_", " "), mine: [name], more: true }))];
}

// sides: one training, or two of the same part of two runs: [{label, training}]
function chartsOf(id, sides) {
  const names = [...new Set(sides.flatMap(({ training }) => Object.keys(training.series)))];
  const cursor = makeCursor();
  const all = panels(names);
  const draw = (wanted) => el("div", { class: "charts" }, panelCharts(id, sides, all.filter(wanted), cursor));
  const rest = all.filter(({ more }) => more).length;
  return [
    draw(({ more }) => !more),
    rest ? el("details", { class: "more", open: state.open.more, on: { toggle: (event) => { state.open.more = event.target.open; } } },
      el("summary", {}, `${plural(rest, "more curve")}`), draw(({ more }) => more)) : null,
  ].filter(Boolean);
}

function panelCharts(id, sides, chosen, cursor) {
  return chosen.flatMap((panel) => {
    const apart = sides.length > 1 && panel.mine.length > 1 ? panel.mine.map((name) => [name]) : [panel.mine];
    return apart.map((mine, part) => chart({
      id: `${id}-${panel.title.replaceAll(" ", "-")}-${part}`,
      title: apart.length > 1 ? `${panel.title}: ${label(panel, mine[0])}` : panel.title,
      note: typeof panel.note === "function" ? panel.note(sides[0].training.kind) : panel.note,
      cursor, smoothing: state.smoothing,
      lines: sides.flatMap(({ label: side, training }, who) => mine.filter((name) => training.series[name]).map((name, at) => ({
        name: sides.length > 1 ? side : label(panel, name),
        steps: training.steps, values: training.series[name],
        band: sides.length > 1 ? null : training.series[panel.band?.[name]],
        colour: `c${sides.length > 1 ? who : at % 6}`,
      }))),
    }));
  });
}

const label = (panel, name) => panel.label?.[name] ?? (panel.prefix ? name.slice(panel.prefix.length) : name.replace(/^eval\//, "validation ").replaceAll("_", " "));

// pairs: [{name, sides}], one tab for each
function curvesSection(pairs) {
  if (!pairs.length) return null;
  const chosen = Math.min(state.tab ?? preferred(pairs), pairs.length - 1);
  const pair = pairs[chosen];
  const slider = el("input", {
    id: "smoothing", type: "range", min: 0, max: 0.95, step: 0.05, value: state.smoothing,
    on: { input: () => { state.smoothing = Number(slider.value); redraw(); } },
  });
  const spread = pair.sides.filter(({ training }) => training.spread).map(({ label: side, training }) => [
    pair.sides.length > 1 ? el("p", { class: "lead" }, side) : null, heatmap(training.spread),
  ]);
  const grid = el("div", {}, chartsOf("curves", pair.sides));
  const redraw = () => grid.replaceChildren(...chartsOf("curves", pair.sides));
  return section("curves", "Curves", null,
    pair.sides.map(alarmsOf),
    el("div", { class: "tools" }, tabs(pairs, chosen), el("label", { class: "check" }, "smooth ", slider)),
    pair.sides[0].training.steps.length ? [grid, spread] : el("p", { class: "empty" }, "No step is finished yet."));
}

// The alarms and notes of a training, with the answers that an alarm names.
function alarmsOf({ training }) {
  const { alarms = [], notes = [] } = training;
  return [
    ...alarms.map((alarm) => el("div", { class: "alarm", role: "alert" },
      el("p", {}, el("b", {}, `Step ${alarm.step}: `), alarm.message),
      alarm.samples.length ? table(["Prompt", "Output", { number: "Reward" }, { number: "Gold" }],
        alarm.samples.map((sample) => [sample.prompt, sample.output, { number: num(sample.proxy) }, { number: num(sample.gold) }]), { label: "answers that the alarm names" }) : null)),
    ...notes.map((note) => el("p", { class: "note warn" }, note)),
  ];
}

function preferred(pairs) {
  const place = pairs.findLastIndex(({ sides }) => sides.some(({ training }) => training.series.reward));
  return place < 0 ? 0 : place;
}

function tabs(pairs, chosen) {
  if (pairs.length < 2) return null;
  const choose = (at) => { state.tab = at; render(`tab-${at}`); };
  return el("div", { class: "tabs", role: "tablist", "aria-label": "Trainings" }, pairs.map(({ name, kind }, at) => el("button", {
    type: "button", role: "tab", id: `tab-${at}`, "aria-selected": String(at === chosen), tabindex: at === chosen ? "0" : "-1",
    on: {
      click: () => choose(at),
      keydown: (event) => {
        const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: pairs.length - 1 }[event.key];
        if (to !== undefined) choose((to + pairs.length) % pairs.length);
      },
    },
  }, name, el("span", { class: "dim" }, ` ${kind}`))));
}
