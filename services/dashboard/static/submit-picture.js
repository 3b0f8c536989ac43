// A picture to redraw is uploaded once, when it is chosen or dropped; the form then names the file that it has become.
const picture = document.getElementById("picture");
const name = document.getElementById("image");
const hint = document.getElementById("picture-hint");
const usual = hint?.textContent;

function tell(sentence, isWrong = false) {
  hint.textContent = sentence;
  hint.classList.toggle("refusal", isWrong);
  hint.setAttribute("role", isWrong ? "alert" : "status");
}

async function upload() {
  const [file] = picture.files;
  if (!file) return;
  tell(`Sending ${file.name}`);
  try {
    const answer = await fetch(picture.form.action, {method: "POST", body: new FormData(picture.form)});
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const found = page.getElementById("image")?.value;
    if (!found) {
      tell(page.querySelector(".problems li, main p")?.textContent.trim() ?? "The server has refused this picture.", true);
      return;
    }
    name.value = found;
    tell(`${file.name} is ${found}.`);
    name.dispatchEvent(new Event("input", {bubbles: true}));
  } catch {
    tell("The server cannot be reached; choose the picture again.", true);
  }
}

if (picture) {
  document.getElementById("upload").hidden = true;
  picture.addEventListener("change", upload);
  name.addEventListener("input", (event) => { if (event.isTrusted) tell(usual); });
  if (!document.getElementById("file")) {  // elsewhere a file that is dropped holds requests
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      if (!event.dataTransfer.files.length) return;
      picture.closest("details").open = true;
      picture.files = event.dataTransfer.files;
      upload();
    });
  }
}
