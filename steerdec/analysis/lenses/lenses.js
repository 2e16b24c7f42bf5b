// One trace at a time, by the select; and what every lens says of the token under the pointer or, by arrow keys, the focus.
const select = document.querySelector("#which");
const articles = [...document.querySelectorAll(".gloss")];

function show(index) {
  articles.forEach((article, i) => article.classList.toggle("away", i !== index));
}

function readout(head) {
  const article = head.closest(".gloss");
  const line = head.closest("table");
  const at = head.cellIndex - 1; // the first cell of a row is its name
  const parts = [...line.tBodies[0].rows].map((row) => {
    let passed = 0;
    for (const cell of [...row.cells].slice(1)) {
      passed += cell.colSpan;
      if (passed > at) return [row.cells[0].textContent, cell.title];
    }
  });
  const panel = article.querySelector(".readout");
  panel.querySelector("b").textContent = head.textContent;
  panel.querySelector(".about").textContent = head.title;
  panel.querySelector("dl").replaceChildren(
    ...parts.filter(Boolean).map(([name, told]) => {
      const pair = document.createElement("div");
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      value.textContent = told;
      pair.append(term, value);
      return pair;
    }),
  );
  article.querySelectorAll(".here").forEach((cell) => cell.classList.remove("here"));
  head.classList.add("here");
}

for (const article of articles) {
  const heads = [...article.querySelectorAll("thead th.token-head")];
  const go = (i) => {
    heads.forEach((head, k) => (head.tabIndex = k === i ? 0 : -1));
    heads[i].focus();
  };
  heads.forEach((head, i) => {
    head.tabIndex = i === 0 ? 0 : -1;
    head.addEventListener("focus", () => readout(head));
    head.addEventListener("click", () => go(i));
    head.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: heads.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(Math.max(0, Math.min(heads.length - 1, to)));
    });
  });
  article.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("td, th.token-head");
    if (!cell) return;
    const head = cell.matches("td") && cell.colSpan === 1 ? cell.closest("table").tHead.rows[0].cells[column(cell)] : cell;
    if (head.matches(".token-head")) readout(head);
  });
  readout(heads[0]);
}

function column(cell) {
  let at = 0;
  for (const before of cell.parentElement.cells) {
    if (before === cell) return at;
    at += before.colSpan;
  }
}

select.closest("p").hidden = false;
select.addEventListener("change", () => show(select.selectedIndex));
show(0);
