const cards = all(".card");
startViewer(document.getElementById("gallery"), read("slices"));

// A patient whose Dice is undefined comes last in both orders.
const undefinedLast = (a, b) => (a.dataset.dice === "") - (b.dataset.dice === "");
const ORDERS = {
  worst: (a, b) => undefinedLast(a, b) || a.dataset.dice - b.dataset.dice,
  best: (a, b) => undefinedLast(a, b) || b.dataset.dice - a.dataset.dice,
  tumor: (a, b) => b.dataset.tumor - a.dataset.tumor,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
};

function arrange() {
  const showAll = document.getElementById("choice").value === "all";
  const order = ORDERS[document.getElementById("sort").value];
  for (const card of cards) card.hidden = !showAll && card.dataset.place === "";
  document.querySelector(".cards").append(...[...cards].sort(order));
}

for (const id of ["choice", "sort"]) document.getElementById(id).addEventListener("change", arrange);
arrange();

for (const [name, spec] of Object.entries(read("charts"))) {
  vegaEmbed(`#chart-${name}`, spec, { actions: false, renderer: "svg" });
}
