// The official npm client against a steerdec server: node openai_client.mjs URL
//
// Prints one line a case and exits 1 at the first that is not as it should be. Our field is not among the client's
// own, which passes what it does not know through both ways: that is what is shown here.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Name three animals." }];
const STEERING = { fork_temperature: 1.3, other_temperature: 0.7, threshold_nats: 0.6, telemetry: "tokens" };
const LISTS = ["entropy_nats", "fork", "temperature"];
const sampling = { model, temperature: 1.0, seed: 5 };

function checkSteering(steering, tokens) {
  for (const name of LISTS) assert.equal(steering[name].length, tokens, name);
  assert.equal(steering.tokens, tokens);
  assert.deepEqual(steering.fork, steering.entropy_nats.map((h) => h > 0.6));
  assert.deepEqual(steering.temperature, steering.fork.map((fork) => (fork ? 1.3 : 0.7)));
  assert.equal(steering.forks, steering.fork.filter(Boolean).length);
}

/** The same answer twice: float32 sums in another order differ in the last digits. */
function checkAlike(a, b) {
  assert.deepEqual(a.fork, b.fork);
  assert.deepEqual(a.temperature, b.temperature);
  for (const [i, h] of a.entropy_nats.entries()) assert.ok(Math.abs(h - b.entropy_nats[i]) < 1e-3, `token ${i}`);
}

/** Chunks of a chat or text stream -> one {text, steering, token_ids} a choice. */
async function gathered(stream, n) {
  const choices = Array.from({ length: n }, () => ({ text: "", token_ids: [], steering: {}, finished: false }));
  for await (const chunk of stream) {
    for (const { index, delta, text, finish_reason, steering, token_ids } of chunk.choices) {
      const choice = choices[index];
      choice.text += text ?? delta.content ?? "";
      choice.token_ids.push(...(token_ids ?? []));
      for (const [name, value] of Object.entries(steering ?? {}))
        choice.steering[name] = Array.isArray(value) ? [...(choice.steering[name] ?? []), ...value] : value;
      choice.finished ||= Boolean(finish_reason);
    }
  }
  for (const choice of choices) assert.ok(choice.finished);
  return choices;
}

const endpoints = {
  chat: (body) => client.chat.completions.create({ ...sampling, messages, max_tokens: 16, ...body }),
  completions: (body) => client.completions.create({ ...sampling, prompt: "Once upon a time", max_tokens: 16, ...body }),
};

for (const [name, create] of Object.entries(endpoints)) {
  for (const n of [1, 4]) {
    for (const steering of [undefined, STEERING]) {
      const whole = await create({ n, steering, return_token_ids: true });
      assert.equal(whole.choices.length, n);
      const counted = whole.choices.reduce((sum, choice) => sum + choice.token_ids.length, 0);
      assert.equal(counted, whole.usage.completion_tokens);
      for (const choice of whole.choices)
        if (steering) checkSteering(choice.steering, choice.token_ids.length);
        else assert.ok(!("steering" in choice));

      const streamed = await gathered(await create({ n, steering, return_token_ids: true, stream: true }), n);
      for (const { index, text, message, steering: report, token_ids } of whole.choices) {
        assert.equal(streamed[index].text, text ?? message.content);
        assert.deepEqual(streamed[index].token_ids, token_ids);
        if (steering) {
          checkSteering(streamed[index].steering, token_ids.length);
          checkAlike(streamed[index].steering, report);
        } else assert.deepEqual(streamed[index].steering, {});
      }
      console.log(`${name}, n = ${n}, ${steering ? "steered" : "plain"}: ${counted} tokens, streamed alike`);
    }
  }
}

{
  const body = { ...sampling, messages, max_tokens: 16, steering: { ...STEERING, stream_telemetry: "end" } };
  const whole = await client.chat.completions.create(body);
  const [final] = (await client.chat.completions.stream(body).finalChatCompletion()).choices;
  assert.equal(final.message.content, whole.choices[0].message.content);
  for (const report of [final.steering, final.message.steering]) checkAlike(report, whole.choices[0].steering);
  checkSteering(final.message.steering, whole.usage.completion_tokens);
  console.log("chat, put together by the stream's helper: the whole telemetry");
}

for (const steering of [undefined, STEERING]) {
  const body = { ...sampling, input: "Name three animals.", max_output_tokens: 16, steering };
  const whole = await client.responses.create(body);
  let closing;
  for await (const event of await client.responses.create({ ...body, stream: true }))
    if (event.type === "response.completed" || event.type === "response.incomplete") closing = event.response;
  for (const response of [whole, closing])
    if (steering) checkSteering(response.steering, response.usage.output_tokens);
    else assert.ok(!("steering" in response));
  if (steering) checkAlike(closing.steering, whole.steering);
  console.log(`responses, ${steering ? "steered" : "plain"}: ${whole.usage.output_tokens} tokens, streamed alike`);
}

for (const stream of [false, true]) {
  const refused = endpoints.chat({ stream, steering: { forks: 1 } });
  const names = (error) => error instanceof OpenAI.BadRequestError && error.param === "steering.forks";
  await assert.rejects(refused, names);
}
console.log("a wrong field is the client's own BadRequestError, with the field as its param");
