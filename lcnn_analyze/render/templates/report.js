"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; label(); };
  label();

  const save = document.getElementById("save");
  save.hidden = false;
  save.onclick = () => {
    const text = JSON.stringify(JSON.parse(document.getElementById("report").textContent), null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  };

  // Cells without a number sort last, whichever way.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const compare = (column, numeric, sign) => (a, b) => {
    if (!numeric) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
    const [x, y] = [value(a, column), value(b, column)];
    return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    const sort = (column, sign) => {
      const numeric = column >= 0 && original.some(row => row.cells[column].dataset.v !== undefined);
      const rows = column < 0 ? original : [...original].sort(compare(column, numeric, sign));
      body.append(...rows);
      heads.forEach((head, place) => {
        if (place === column) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
    };
    heads.forEach((head, column) => {
      const click = () => {
        const numeric = original.some(row => row.cells[column].dataset.v !== undefined);
        const now = head.getAttribute("aria-sort");
        const first = numeric ? -1 : 1;
        // Once, the other way round, back to call order.
        if (!now) sort(column, first);
        else if ((now === "ascending") === (first > 0)) sort(column, -first);
        else sort(-1, 1);
      };
      head.tabIndex = 0;
      head.setAttribute("role", "button");
      head.title = "Sort";
      head.onclick = click;
      head.onkeydown = event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); click(); } };
    });
    for (const cell of table.querySelectorAll("td[data-v]")) {
      const exact = Number(cell.dataset.v);
      cell.title = Number.isInteger(exact) ? exact.toLocaleString("en") : String(exact);
    }
    const tools = table.closest("section").querySelector(".tools");
    if (!tools || !table.classList.contains("layers")) continue;
    tools.hidden = false;
    const [filter, free, wide, select, count] = ["[type=search]", "[name=free]", "[name=wide]", "select", "output"].map(s => tools.querySelector(s));
    const show = () => {
      const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of original) {
        const text = [...row.cells].slice(0, 4).map(cell => cell.textContent).join(" ").toLowerCase();
        row.hidden = !wanted.every(word => text.includes(word));
        row.style.display = row.hidden ? "none" : "";
        if (!row.hidden && (free?.checked || !row.classList.contains("free"))) shown += 1;
      }
      table.classList.toggle("all", Boolean(free?.checked));
      count.textContent = wanted.length ? `${shown} shown` : "";
    };
    filter.oninput = show;
    if (free) free.onchange = show;
    if (wide) wide.onchange = () => table.classList.toggle("wide", wide.checked);
    select.append(new Option("call order", -1), ...heads.map((head, place) => new Option(head.firstChild.textContent, place)));
    select.onchange = () => {
      const column = Number(select.value);
      const numeric = column >= 0 && original.some(row => row.cells[column].dataset.v !== undefined);
      sort(column, numeric ? -1 : 1);
    };
  }
})();
