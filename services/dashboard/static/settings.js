// A key that was just made: it can be copied, and loading the page again does not make another.
import {copy} from "./copy.js";

const made = document.querySelector("[data-made]");
if (made) history.replaceState(null, "", made.dataset.made);

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await copy(document.getElementById(button.dataset.copy));
    button.textContent = "Copied";
  });
}
