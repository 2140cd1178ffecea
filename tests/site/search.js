// Asks the built site's own search, as a browser would: search.js SITE, and a line of words at a time on the input.
// It answers each with a line of JSON: the pages that it found, best first.
const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const vm = require("node:vm");

const site = process.argv[2];
const nothing = { dataset: {}, addEventListener() {}, getElementById: () => null };
const browser = vm.createContext({
  document: { ...nothing, readyState: "loading", documentElement: nothing },
  localStorage: { setItem() {} },
  addEventListener() {},
  console,
});
browser.window = browser;
for (const name of ["documentation_options", "doctools", "sphinx_highlight", "searchtools", "language_data", "../searchindex"])
  vm.runInContext(fs.readFileSync(path.join(site, "_static", `${name}.js`), "utf8"), browser, name);
const ask = vm.runInContext("(words) => Search._performSearch(...Search._parseQuery(words))", browser);

readline.createInterface({ input: process.stdin }).on("line", (words) => {
  const pages = ask(words).reverse().map(([page]) => page); // the best one is the last
  console.log(JSON.stringify([...new Set(pages)]));
});
