// A list with a detail view: search, filter, sort order, arrow keys.

// items: [{words, row(): node, detail(words): node, ...}]; filters, sorts: {name: function}
function browser({ id, items, filters, sorts, hint, empty }) {
  const kept = (state.browsers[id] ??= { query: "", filter: "all", sort: Object.keys(sorts)[0], chosen: null });
  const list = el("ul", { id: `${id}-list`, class: "rows", role: "listbox", tabindex: "0", "aria-label": hint });
  const detail = el("div", { id: `${id}-detail`, class: "detail", "aria-live": "polite" });
  const count = el("span", { class: "count", role: "status" });
  let shown = [];

  const search = el("input", {
    id: `${id}-search`, type: "search", placeholder: hint, "aria-label": hint, autocomplete: "off", spellcheck: "false",
    on: { input: () => { kept.query = search.value; refresh(); } },
  });
  search.value = kept.query;
  const choice = (key, label, options) => {
    const select = el("select", { id: `${id}-${key}`, "aria-label": label, on: { change: () => { kept[key] = select.value; refresh(); } } },
      options.map((name) => el("option", { value: name, selected: name === kept[key] }, name)));
    return select;
  };
  const words = () => kept.query.toLowerCase().split(/\s+/).filter(Boolean);

  function refresh() {
    const wanted = words();
    const passes = filters[kept.filter] ?? (() => true);
    shown = items.filter((item) => passes(item) && wanted.every((word) => item.words.includes(word)));
    if (sorts[kept.sort]) shown = shown.toSorted(sorts[kept.sort]);
    count.replaceChildren(shown.length === items.length ? plural(items.length, empty.noun) : `${shown.length} of ${plural(items.length, empty.noun)}`);
    list.replaceChildren(...shown.map((item, place) => el("li", {
      role: "option", id: `${id}-row-${place}`, on: { click: () => choose(item, true) },
    }, item.row())));
    choose(shown.find((item) => item.key === kept.chosen) ?? shown[0]);
  }

  function choose(item, byHand) {
    if (!item) {
      detail.replaceChildren(el("p", { class: "empty" }, items.length ? "Nothing matches." : empty.text));
      list.removeAttribute("aria-activedescendant");
      return;
    }
    kept.chosen = item.key;
    const place = shown.indexOf(item);
    [...list.children].forEach((row, at) => row.setAttribute("aria-selected", at === place));
    list.setAttribute("aria-activedescendant", `${id}-row-${place}`);
    detail.replaceChildren(item.detail(words(), jump));
    detail.scrollTop = 0;
    if (byHand) reveal(list, list.children[place]);
    if (byHand && matchMedia("(max-width: 760px)").matches) detail.scrollIntoView({ block: "start", behavior: motion() });
  }

  function jump(key) {
    const item = items.find((one) => one.key === key);
    if (item && !shown.includes(item)) {
      Object.assign(kept, { query: "", filter: "all", chosen: key });
      search.value = "";
      detail.parentElement.parentElement.querySelector(`#${id}-filter`).value = "all";
      refresh();
    }
    choose(item, true);
  }

  list.addEventListener("keydown", (event) => {
    const at = shown.findIndex((item) => item.key === kept.chosen);
    const to = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, Home: 0, End: shown.length - 1, PageDown: at + 10, PageUp: at - 10 }[event.key];
    if (to === undefined || !shown.length) return;
    event.preventDefault();
    const item = shown[Math.max(0, Math.min(shown.length - 1, to))];
    choose(item);
    reveal(list, list.children[shown.indexOf(item)]);
  });
  refresh();
  const raw = el("label", { class: "check" },
    el("input", { id: `${id}-raw`, type: "checkbox", checked: state.raw, on: { change: (event) => { state.raw = event.target.checked; refresh(); } } }),
    "as written");
  return el("div", { class: "browser" },
    el("div", { class: "tools" }, search,
      Object.keys(filters).length ? choice("filter", "Which to show", ["all", ...Object.keys(filters)]) : null,
      Object.keys(sorts).length > 1 ? choice("sort", "Sort order", Object.keys(sorts)) : null,
      raw, count),
    el("div", { class: "panes" }, list, detail));
}

function reveal(list, row) {
  const [top, bottom] = [row.offsetTop - list.offsetTop, row.offsetTop - list.offsetTop + row.offsetHeight];
  if (top < list.scrollTop) list.scrollTop = top;
  if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
}

const motion = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth");
