// Charts other than curves: the distribution of rewards over the steps, means with intervals, dots.

// Rewards over the steps: one column per range of steps, one row per bin; darker means more samples.
function heatmap({ low, high, steps, counts }) {
  const bins = counts[0].length;
  const flat = low === high;
  const cell = { width: 1000 / steps.length, height: 180 / (flat ? 1 : bins) };
  const said = el("span", { class: "where" });
  const cells = counts.flatMap((column, at) => {
    const all = column.reduce((a, b) => a + b, 0);
    return column.map((count, bin) => {
      if (!count) return null;
      const share = count / all;
      const box = svg("rect", {
        class: "cell", x: at * cell.width, y: flat ? 0 : 180 - (bin + 1) * cell.height,
        width: cell.width + 0.5, height: cell.height + 0.5, opacity: (0.12 + 0.88 * Math.sqrt(share)).toFixed(2),
      });
      const [from, to] = [low + (bin * (high - low)) / bins, low + ((bin + 1) * (high - low)) / bins];
      const range = flat ? num(low) : `${num(from)} to ${num(to)}`;
      box.addEventListener("pointerenter", () => {
        said.replaceChildren(`from step ${steps[at]}: ${num(100 * share, 2)} % of ${plural(all, "sample")} at ${range}`);
      });
      return box;
    });
  });
  const picture = svg("svg", {
    class: "heat", viewBox: "0 0 1000 180", preserveAspectRatio: "none", role: "img",
    "aria-label": `Rewards of all samples from ${num(low)} to ${num(high)}, over the steps`,
  }, cells);
  picture.addEventListener("pointerleave", () => said.replaceChildren());
  return el("figure", { class: "wide" },
    el("figcaption", {}, el("h3", {}, "Rewards of all samples", said)),
    el("div", { class: "heatbox" },
      el("span", { class: "tick top" }, num(high)), el("span", { class: "tick bottom" }, flat ? "" : num(low)),
      picture),
    el("div", { class: "underaxis" }, el("span", {}, `step ${steps[0]}`), el("span", {}, `from step ${steps[steps.length - 1]}`)),
    el("p", { class: "note" }, "Each column is a range of steps, each row a range of rewards; the stronger the colour, the larger the share of samples."));
}

// Draws each mean as a dot with a bar for its 95 % interval, all on one scale.
function forest(rows, percent) {
  const ends = rows.flatMap(({ score: [mean, low, high] }) => [mean, low ?? mean, high ?? mean]);
  const low = percent ? 0 : Math.min(...ends);
  const high = percent ? 1 : Math.max(...ends);
  const x = (value) => (high > low ? (100 * (value - low)) / (high - low) : 50);
  return (score, colour) => {
    const [mean, from, to] = score;
    return svg("svg", { class: `whisker ${colour}`, "aria-hidden": "true" },
      svg("line", { class: "rail", x1: "0%", x2: "100%", y1: 10, y2: 10 }),
      svg("line", { class: "bar", x1: `${x(from ?? mean)}%`, x2: `${x(to ?? mean)}%`, y1: 10, y2: 10 }),
      svg("circle", { cx: `${x(mean)}%`, cy: 10, r: 5 }));
  };
}

// Draws the rewards of a group as ticks on a line, to show their spread.
function strip(rewards, low, high) {
  const x = (value) => 3 + (high > low ? (value - low) / (high - low) : 0.5) * 58;
  return svg("svg", { class: "strip", viewBox: "0 0 64 12", "aria-hidden": "true" },
    svg("path", { class: "rail", d: "M3 6H61" }),
    rewards.map((reward) => svg("circle", { cx: x(reward), cy: 6, r: 2.6 })));
}

// Draws a bar from zero, to the left for negative and to the right for positive values.
function lean(value, largest) {
  const share = largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0;
  return svg("svg", { class: `lean ${value < 0 ? "less" : "more"}`, viewBox: "0 0 80 10", "aria-hidden": "true" },
    svg("path", { class: "rail", d: "M40 0V10" }),
    svg("rect", { x: value < 0 ? 40 - 40 * share : 40, y: 2, width: 40 * share, height: 6 }));
}
