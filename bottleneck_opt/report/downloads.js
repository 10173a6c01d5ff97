// The files that the page carries, packed.
function offerDownloads() {
  for (const control of document.querySelectorAll("[data-download]")) {
    control.addEventListener("click", async () => {
      const name = control.dataset.download;
      const packed = [...document.querySelectorAll("script[data-file]")].find((each) => each.dataset.file === name);
      const blob = await unpack(packed.textContent.trim(), control.dataset.kind);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
}

async function unpack(text, kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Blob([await new Response(stream).arrayBuffer()], { type: kind });
}
