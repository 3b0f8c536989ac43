// A key that was just made: it can be copied, and loading the page again does not make another.
const made = document.querySelector("[data-made]");
if (made) history.replaceState(null, "", made.dataset.made);

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue; // as over http: the text can be selected
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
