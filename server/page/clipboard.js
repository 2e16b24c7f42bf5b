// Copying text, and handing a file to the person.

/** The clipboard needs HTTPS or localhost; elsewhere the text of `node` is selected and copied the old way. */
export async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    if (!node) return false;
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
