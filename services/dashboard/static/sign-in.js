// A link of `presswork open`: what signs in stands behind the #, and is sent once, in the form.
const form = document.getElementById("once");
const found = location.hash.match(/^#link=([\w-]+)$/);
if (form && found) {
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.link.value = found[1];
  form.submit();
}
