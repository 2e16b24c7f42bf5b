// Server-sent events out of a response body: https://html.spec.whatwg.org/multipage/server-sent-events.html

/** Yields the data of each event. `stream` is a ReadableStream of bytes, cut anywhere, also inside a character. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // the standard drops an event that no blank line ended
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/); // a last \r may be half of \r\n
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the consumer stopped early; a failed stream has nothing to cancel
  }
}
