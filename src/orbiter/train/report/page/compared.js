// A comparison of two models: the verdict, the differences, the slices, the cost.

function comparedSection(found) {
  if (!found) return null;
  const names = Object.keys(found.differences);
  const ends = ({ mean, low, high, n }) => [mean, low, high, n];
  const confidence = `${num(100 * found.confidence)} %`;
  const early = found.items < found.planned_items ? `, stopped early of ${found.planned_items.toLocaleString("en")}` : "";
  return section("compared", "Comparison", `${plural(found.items, "item")}${early}; B − A, item by item, at ${confidence} confidence over all looks.`,
    found.verdict ? el("p", { id: "verdict", class: "verdict" }, el("b", {}, `Requirements ${found.verdict}`)) : null,
    found.requirements.length ? el("ul", { class: "requirements" }, found.requirements.map(({ requirement, verdict, why }) => el("li", {},
      el("code", {}, requirement), ` ${verdict}`, why ? el("span", { class: "dim" }, ` ${why}`) : ""))) : null,
    table(["", { number: found.a.name }, { number: found.b.name }, { number: "B − A" }], names.map((name) => [
      name, ...[found.a, found.b].map((side) => ({ number: side.means[name] ? ranged(ends(side.means[name])) : "–" })),
      { number: [ranged(ends(found.differences[name]), false, true), sure(ends(found.differences[name]))] },
    ]), { label: "Differences", kind: "differences" }),
    found.slices.length ? [
      el("h3", {}, `By ${found.by}`),
      table(["slice", { number: "items" }, { number: "B − A" }, ""], found.slices.map((slice) => [
        slice.value, { number: num(slice.n) }, { number: ranged(ends(slice), false, true) }, slice.regressed ? el("b", { class: "regressed" }, "regressed") : "",
      ]), { label: "Slices", kind: "slices" }),
      el("p", { class: "note" }, `The intervals of all ${found.slices.length} slices hold together; a slice regressed if its whole interval is below 0.`),
    ] : null,
    el("h3", {}, "Cost"),
    table(["", { number: "tokens here" }, { number: "time" }, { number: "endpoint tokens" }, { number: "money" }, { number: "without a reward" }],
      [found.a, found.b].map((side) => [side.name, { number: num(side.cost.tokens ?? 0) }, { number: duration(side.cost.seconds ?? 0) },
        { number: num(side.cost.endpoint_tokens ?? 0) }, { number: num(side.cost.money ?? 0) }, { number: num(side.failed) }]), { label: "Cost", kind: "cost" }),
    found.detectable === null ? null : el("p", { class: "note" }, `With the measured spread, all ${found.planned_items.toLocaleString("en")} items show a difference of ${num(found.detectable)} four times out of five.`));
}
