/** Prints how many functions of C are looked up when the module is imported. */
const open = Deno.dlopen;
let count = 0;
Deno.dlopen = (library, symbols) => {
  count += Object.keys(symbols).length;
  return open(library, symbols);
};
await import("../../mod.ts");
console.log(count);
