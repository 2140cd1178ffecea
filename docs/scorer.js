// Who searches has a question: so pages that answer one come before those that list everything.
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score: ([page, , , , score, , kind]) => {
    if (kind === "object") return score + 20; // a name of the API, as it is
    if (/^(howto\/|(etcd|http|ldk|ledger|metrics|postgresql|testing|tutorial)$)/.test(page)) return score + 12;
    if (page.startsWith("explanation/")) return score + 6;
    if (/^(api|architecture|benchmarks|changelog|contributing|mutation|profile)$/.test(page)) return score - 12;
    return score;
  },
};
