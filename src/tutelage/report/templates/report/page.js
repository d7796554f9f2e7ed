// The interactive parts of the report page: tables that sort and filter, and the row browser. Nothing is loaded and no
// library is used. Words come from the page (#rows-words, data-filter), which has several languages. Text from data
// goes through textContent only.
"use strict";
(() => {
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // --- tables --------------------------------------------------------------------------------------------------------

  // <table data-table>: a button in each th[data-sort=number|text]; cells sort by data-value, or by their text.
  function makeSortable(table) {
    const body = table.tBodies[0];
    for (const header of table.querySelectorAll("thead th[data-sort]")) {
      const button = make("button", { type: "button", class: "sort" }, ...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const numeric = header.dataset.sort === "number";
        const before = header.getAttribute("aria-sort");
        // Numbers are most often sought from the top, texts from A.
        const down = before ? before === "ascending" : numeric;
        for (const other of table.querySelectorAll("thead th[aria-sort]")) other.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[header.cellIndex], numeric) }));
        keyed.sort((a, b) => compare(a.key, b.key, down)); // sort is stable
        body.append(...keyed.map((item) => item.row));
      });
    }
  }

  function keyOf(cell, numeric) {
    const text = cell ? (cell.dataset.value ?? cell.textContent.trim()) : "";
    if (!numeric) return text || null;
    const number = Number.parseFloat(text.replace("\u2212", "-").replaceAll(",", ""));
    return Number.isNaN(number) ? null : number;
  }

  // What is not known stands last, whichever the direction.
  function compare(a, b, down) {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, document.documentElement.lang, { numeric: true });
    return down ? -order : order;
  }

  // data-filter="LABEL": a field above the table that leaves the rows which hold all of its words.
  function makeFilterable(table) {
    const field = make("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    const count = make("output");
    const label = make("label", {}, make("span", {}, table.dataset.filter), field);
    const bar = make("div", { class: "filter" }, label, count);
    (table.closest(".scroll") ?? table).before(bar);
    const rows = [...table.tBodies[0].rows];
    const texts = rows.map((row) => folded(row.textContent));
    field.addEventListener("input", () => {
      const wanted = folded(field.value).split(/\s+/);
      let left = 0;
      rows.forEach((row, position) => {
        row.hidden = !wanted.every((word) => texts[position].includes(word));
        left += !row.hidden;
      });
      count.textContent = field.value ? `${left} / ${rows.length}` : "";
    });
  }

  // On a phone the cells of a wide table stand below each other, each with the name of its column.
  function nameCells(table) {
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    for (const row of [...table.tBodies].flatMap((body) => [...body.rows])) {
      for (const cell of row.cells) if (cell.tagName === "TD") cell.dataset.head = names[cell.cellIndex];
    }
    table.classList.add("stacked");
  }

  for (const table of document.querySelectorAll("table.stacks")) nameCells(table);
  for (const table of document.querySelectorAll("table[data-table]")) {
    makeSortable(table);
    if (table.dataset.filter) makeFilterable(table);
  }

  // --- folded sections -----------------------------------------------------------------------------------------------

  const folds = () => [...document.querySelectorAll("details:not(.others)")];

  // A link opens the section that it leads to; browsers that do so by themselves find it open.
  function unfold(hash) {
    const target = hash.length > 1 ? document.getElementById(decodeURIComponent(hash.slice(1))) : null;
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    return target;
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (link) unfold(link.hash);
  });
  addEventListener("hashchange", () => unfold(location.hash));
  if (location.hash) unfold(location.hash)?.scrollIntoView();

  // Paper has no way to open a section: print all of them, and close them again.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = folds().filter((fold) => !fold.open);
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of opened) fold.open = false;
  });

  // --- text and numbers ----------------------------------------------------------------------------------------------

  // One form for what looks or is typed alike: case, full-width letters, composed and decomposed Hangul.
  function folded(text) {
    return text.normalize("NFKC").toLowerCase();
  }

  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

  // Characters that have no look of their own, or that would turn the text around them, shown as what they are.
  function visible(text) {
    return text.replace(/\r\n?/g, "\n").replace(UNSEEN, (character) => {
      const code = character.codePointAt(0);
      if (code < 0x20) return String.fromCodePoint(0x2400 + code); // ␛ for escape
      return code === 0x7f ? "␡" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    });
  }

  const known = (number) => typeof number === "number";
  const fixed = (number) => {
    if (!known(number)) return "–";
    return number.toFixed(3).replace(/^-(?=0\.000$)/, "").replace("-", "\u2212");
  };
  const signed = (number) => (known(number) && Number(number.toFixed(3)) > 0 ? "+" : "") + fixed(number);
  const counted = (number) => number.toLocaleString(document.documentElement.lang || "en");
  const filled = (sentence, values) => sentence.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);

  function languageName(code) {
    try {
      return new Intl.DisplayNames([document.documentElement.lang || "en"], { type: "language" }).of(code);
    } catch {
      return visible(code); // the user's own name for it
    }
  }

  // Columns: numbers as a list, or one number for all rows; texts as the distinct values and, for each row, the index
  // of its value.
  const at = (column, row) => (Array.isArray(column) ? column[row] : column);
  const textAt = (column, row) => (column && column.codes[row] >= 0 ? column.values[column.codes[row]] : null);

  // --- the row browser ------------------------------------------------------------------------------------------

  const root = document.getElementById("rows-browser");
  const around = root?.closest("details");
  if (around && !around.open) around.addEventListener("toggle", () => start(root), { once: true }); // unpacked if read
  else if (root) start(root);

  async function start(root) {
    const words = JSON.parse(document.getElementById("rows-words").textContent);
    const status = root.querySelector("[role=status]");
    if (typeof DecompressionStream === "undefined") {
      status.textContent = words.old;
      return;
    }
    try {
      const packed = atob(document.getElementById("rows-data").textContent.trim());
      const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      browse(root, await new Response(stream).json(), words, status);
    } catch (error) {
      status.textContent = words.broken;
      throw error;
    }
  }

  function browse(root, data, words, status) {
    const find = (name) => root.querySelector(`[data-part=${name}]`);
    const [search, kind, student, order, grid, head, scroller, canvas, dialog] =
      ["search", "kind", "student", "order", "grid", "head", "scroller", "canvas", "story"].map(find);
    const filters = ["outcome", "side", "language", "subdomain", "found"].map(find);
    const [outcome, side, language, subdomain, found] = filters;
    const called = (model) => words.models[model] ?? model;
    const rated = data.models.filter((model) => model !== "teacher");
    const compared = data.models.includes("teacher") && rated.length > 0;
    // mine: columns of the student that is compared; active: position in matches.
    let table, training, mine, matches, active, texts, rowHeight;
    const drawn = new Map();

    // --- what the controls offer

    function fill(select, options, chosen = "") {
      select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
      select.value = chosen;
      select.closest("label").hidden = options.length < 2;
    }

    function tally(column, letters, named) {
      const [all, counts] = [["", words.all], {}];
      if (!column || !compared) return [all];
      for (const letter of column) counts[letter] = (counts[letter] ?? 0) + 1;
      const there = [...letters].filter((letter) => letter !== "t" || letters === "st" || counts.t);
      return [all, ...there.map((letter) => [letter, `${named[letter]} (${counted(counts[letter] ?? 0)})`])];
    }

    function offerTable() {
      training = kind !== null && kind.querySelector("input:checked").value === "training";
      table = training ? data.training : data.test;
      for (const legend of root.querySelectorAll("[data-kind]")) {
        legend.hidden = (legend.dataset.kind === "training") !== training;
      }
      texts = null;
      const named = [[language, table.language, languageName], [subdomain, table.subdomain, visible]];
      for (const [select, column, name] of named) {
        const values = column ? column.values.map((value, code) => [String(code), name(value)]) : [];
        values.sort((a, b) => a[1].localeCompare(b[1]));
        fill(select, [["", words.all], ...values]);
      }
      fill(student, training ? [] : rated.map((model) => [model, called(model)]), data.main ?? "");
      const sorted = training ? ["given", "weight-down", "weight-up", "gap-down", "gap-up"] : ["given"];
      if (!training && compared) sorted.push("gap-down", "gap-up");
      const sure = !training && rated.some((model) => table.models[model].confidence !== null);
      if (sure) sorted.push("sure-up", "sure-down");
      fill(order, sorted.map((name) => [name, words.order[training ? "training" : "test"][name]]), "given");
      offerStudent();
    }

    function offerStudent() {
      mine = training ? null : table.models[student.value || data.models[0]];
      fill(outcome, tally(mine?.outcome, "wlrnt", words.outcome));
      fill(side, tally(mine?.side, "st", words.side));
      fill(found, [["", words.all], ...Object.keys(mine?.found ?? {}).map((name) => [name, visible(name)])]);
      const answerOfTeacher = 4;
      const test = words.columns.test.filter((_, column) => compared || column !== answerOfTeacher);
      const names = training ? words.columns.training : test;
      head.replaceChildren(...names.map((name) => make("span", { role: "columnheader" }, name)));
      grid.setAttribute("aria-colcount", names.length);
      rowHeight = 0; // on a phone every answer has a line
      select();
    }

    // --- which rows, in which order

    function haystacks() {
      const answers = training ? [] : data.models.map((model) => table.models[model]);
      return table.ids.map((id, row) => folded([
        id, table.prompt[row], textAt(table.gold, row), ...answers.map((a) => textAt(a.answer, row) ?? a.unread[row]),
      ].filter(Boolean).join("\n")));
    }

    function select() {
      const wanted = folded(search.value.trim());
      if (wanted) texts ??= haystacks(); // made when first asked for: most readers of a page do not search
      const [o, s, l, d, f] = filters.map((field) => field.value);
      matches = [];
      for (let row = 0; row < table.ids.length; row += 1) {
        if (o && mine.outcome[row] !== o) continue;
        if (s && mine.side[row] !== s) continue;
        if (l && String(table.language.codes[row]) !== l) continue;
        if (d && String(table.subdomain.codes[row]) !== d) continue;
        if (f && mine.found[f][row] !== "1") continue;
        if (wanted && !texts[row].includes(wanted)) continue;
        matches.push(row);
      }
      const [key, direction] = order.value.split("-");
      if (direction) {
        const keys = table.ids.map((id, row) => keyFor(key, row) ?? null);
        matches.sort((a, b) => compare(keys[a], keys[b], direction === "down"));
      }
      active = matches.length ? 0 : -1;
      grid.setAttribute("aria-rowcount", matches.length + 1);
      canvas.style.height = `${matches.length * height()}px`;
      scroller.scrollTop = 0;
      find("nothing").hidden = matches.length > 0;
      status.textContent = filled(words.count, { shown: counted(matches.length), all: counted(table.ids.length) });
      redraw();
    }

    const mean = (name, row) => {
      const values = table.stages.map((stage) => at(table.columns[stage[name]], row));
      return values.every(known) ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    };
    const less = (a, b) => (known(a) && known(b) ? a - b : null);

    // The loss difference is above 0 where the teacher is the better one, for test and training rows alike.
    function keyFor(key, row) {
      if (key === "weight") return mean("weight", row);
      if (key === "sure") return at(mine.confidence, row);
      if (training) return less(mean("anchor", row), mean("teacher", row));
      return compared ? less(at(mine.nll, row), at(table.models.teacher.nll, row)) : null;
    }

    // --- the list: only the rows in sight are in the document

    const height = () => rowHeight || (rowHeight = find("ruler").offsetHeight || 56);

    function redraw() {
      for (const element of drawn.values()) element.remove();
      drawn.clear();
      draw();
    }

    function draw() {
      const first = Math.max(0, Math.floor(scroller.scrollTop / height()) - 6);
      const last = Math.min(matches.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / height()) + 6);
      // aria-activedescendant must be in the document.
      const wanted = (position) => (position >= first && position < last) || position === active;
      for (const [position, element] of drawn) {
        if (wanted(position)) continue;
        element.remove();
        drawn.delete(position);
      }
      for (let position = first; position < last; position += 1) show(position);
      if (active >= 0) show(active);
      for (const [position, element] of drawn) element.setAttribute("aria-selected", position === active);
      if (active >= 0) grid.setAttribute("aria-activedescendant", `row-${active}`);
      else grid.removeAttribute("aria-activedescendant");
    }

    function show(position) {
      if (!drawn.has(position)) drawn.set(position, canvas.appendChild(rowElement(matches[position], position)));
    }

    const headOf = (column) => head.children[column].textContent;

    function rowElement(row, position) {
      const lang = textAt(table.language, row);
      const better = whoIsBetter(row);
      const named = make("span", { class: "hidden" }, words.better[better] ?? "");
      const mark = make("span", { role: "gridcell", class: `who-${better}` }, named);
      const teacherAnswer = !training && compared ? [answerOf(table.models.teacher, row, lang)] : [];
      const last = training
        ? [`${fixed(mean("anchor", row))} / ${fixed(mean("teacher", row))}`, fixed(mean("weight", row))]
        : [answerOf(mine, row, lang), ...teacherAnswer, signed(keyFor("gap", row))];
      const cells = [textOf(table.prompt[row].slice(0, 300), lang), textOf(textAt(table.gold, row), lang), ...last];
      const element = make("div", { role: "row", id: `row-${position}`, "aria-rowindex": position + 2 }, mark,
        ...cells.map((cell, n) => make("span", { role: "gridcell", "data-head": headOf(n + 1) }, cell)));
      element.style.top = `${position * height()}px`;
      return element;
    }

    function whoIsBetter(row) {
      if (!training) return { w: "student", l: "teacher", r: "right", n: "wrong", t: "level" }[mine.outcome[row]] ?? "unknown";
      const gap = keyFor("gap", row);
      return gap === null ? "unknown" : gap > 0 ? "teacher" : gap < 0 ? "anchor" : "level";
    }

    // <bdi> keeps the direction of a text to itself.
    const textOf = (text, lang) => {
      if (text == null) return soft("–");
      return text === "" ? soft(words.empty) : make("bdi", { lang }, visible(text));
    };
    const soft = (text) => make("span", { class: "soft" }, text);
    const answerOf = (columns, row, lang) => {
      const raw = columns.unread[row];
      if (raw === undefined) return textOf(textAt(columns.answer, row), lang);
      return make("span", {}, soft(`${words.unread} `), textOf(raw, lang));
    };

    // --- one row's whole story

    function open(position) {
      active = position;
      const row = matches[position];
      const lang = textAt(table.language, row);
      find("position").textContent = `${counted(position + 1)} / ${counted(matches.length)}`;
      const about = [
        [words.id, table.ids[row]], [words.language, lang && languageName(lang)],
        [words.subdomain, textAt(table.subdomain, row)],
      ];
      for (const [name, mask] of Object.entries(mine?.found ?? {})) {
        if (mask[row] === "1") about.push([words.found, name]);
      }
      const facts = make("dl", { class: "facts" });
      for (const [name, value] of about) {
        if (value != null) facts.append(make("div", {}, make("dt", {}, name), make("dd", {}, textOf(value))));
      }
      const block = (text) => make("div", { class: "text", dir: "auto" }, textOf(text, lang));
      const heading = (text) => make("h3", {}, text);
      find("body").replaceChildren(
        heading(words.prompt), block(table.prompt[row]),
        heading(words.gold), block(textAt(table.gold, row)),
        heading(training ? words.stages : words.answers), training ? stageTable(row) : answerTable(row, lang),
        facts,
      );
      find("body").scrollTop = 0;
      find("previous").disabled = position === 0;
      find("next").disabled = position === matches.length - 1;
      if (!dialog.open) dialog.showModal();
      reveal();
    }

    function answerTable(row, lang) {
      const sure = data.models.some((model) => table.models[model].confidence !== null);
      const names = ["model", "answer", "score", "loss", ...(sure ? ["confidence"] : [])];
      return tableOf(names, data.models.map((model) => {
        const columns = table.models[model];
        const numbers = [columns.score, columns.nll, columns.confidence].map((column) => fixed(at(column, row)));
        return { main: columns === mine, cells: [called(model), answerOf(columns, row, lang), ...numbers] };
      }));
    }

    function stageTable(row) {
      return tableOf(["stage", "checkpoint", "anchorLoss", "teacherLoss", "weight"], table.stages.map((stage) => {
        const numbers = ["anchor", "teacher", "weight"].map((name) => fixed(at(table.columns[stage[name]], row)));
        return { cells: [String(stage.stage), stage.checkpoint ?? "–", ...numbers] };
      }));
    }

    function tableOf(names, rows) {
      const type = (column) => (column > 1 ? { class: "n" } : {}); // the first two columns are texts
      const header = names.map((name, column) => make("th", { scope: "col", ...type(column) }, words.heads[name]));
      const cellOf = (name, column, cell) => {
        if (column === 0) return make("th", { scope: "row" }, cell);
        return make("td", { ...type(column), "data-head": words.heads[name] }, cell);
      };
      const body = rows.map(({ main, cells }) => {
        const elements = names.map((name, column) => cellOf(name, column, cells[column]));
        return make("tr", { class: main ? "main" : null }, ...elements);
      });
      const table = make("table", {}, make("thead", {}, make("tr", {}, ...header)), make("tbody", {}, ...body));
      return make("div", { class: "scroll" }, table);
    }

    // --- keys and pointers

    function reveal() {
      const top = active * height();
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      const bottom = top + height() - scroller.clientHeight;
      if (bottom > scroller.scrollTop) scroller.scrollTop = bottom;
      draw();
    }

    grid.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(scroller.clientHeight / height()) - 1);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (!matches.length || event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key in steps) {
        active = Math.max(0, Math.min(matches.length - 1, active + steps[event.key]));
        reveal();
      } else if (event.key === "Enter" || event.key === " ") open(active);
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("click", (event) => {
      const element = event.target.closest("[role=row]");
      if (element && getSelection().isCollapsed) open(Number(element.id.slice(4)));
    });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step && matches[active + step] !== undefined) open(active + step);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // the backdrop
    dialog.addEventListener("close", () => grid.focus({ preventScroll: true }));
    find("previous").addEventListener("click", () => open(active - 1));
    find("next").addEventListener("click", () => open(active + 1));
    find("close").addEventListener("click", () => dialog.close());

    const once = (work, waiting = 0) => () => { waiting ||= requestAnimationFrame(() => { waiting = 0; work(); }); };
    scroller.addEventListener("scroll", once(draw), { passive: true });
    new ResizeObserver(once(() => {
      rowHeight = 0;
      canvas.style.height = `${matches.length * height()}px`;
      redraw();
    })).observe(scroller);
    search.addEventListener("input", select);
    for (const field of [...filters, order]) field.addEventListener("change", select);
    student.addEventListener("change", offerStudent);
    kind?.addEventListener("change", offerTable);

    root.classList.add("ready"); // before rows are measured
    offerTable();
  }
})();
