// Puts the text of an element on the clipboard. Over http a page has none: there it is selected and copied as a person would.
export async function copy(element) {
  if (navigator.clipboard) return navigator.clipboard.writeText(element.textContent);
  const chosen = getSelection();
  chosen.selectAllChildren(element);
  const done = document.execCommand("copy");
  chosen.removeAllRanges();
  if (!done) throw new Error("the browser refused");
}
