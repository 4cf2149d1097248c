// The page of llm_serve: a text that grows token by token, each in the color of its probability,
// and what else could stand in a token's place. All that a model or a server says is set as text.

const LEVELS = [0.8, 0.4, 0.1, 0.02, 0]; // the lowest probability of each color
const N_OTHERS = 5; // alternatives to a token that are asked for
const SLIDERS = [...document.querySelectorAll("input[type=range]")];
const $ = (id) => document.getElementById(id);

let about = null; // what the server says of its model
let key = ""; // kept in this page alone
let draft = null; // what is shown: {prompt, promptIds | messages, nRead, tokens, seed, ended}
let past = []; // the drafts before it, for Undo
let turns = []; // what was said before, in a chat
let spans = []; // of the draft's tokens
let held = -1; // the token that was clicked, -1: none
let writing = null; // the AbortController of what is being written
let retry = null; // what «Try again» does

// ---- Words -------------------------------------------------------------------------------------

function chance(logProb) {
  const p = Math.exp(logProb);
  if (p > 0.999 && p < 1) return "> 99.9 %";
  return p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
}

// White space made visible, as everywhere in the course.
function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "→") || "▫";
}

function textOf(tokens) {
  return tokens.map((token) => token.text).join("");
}

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function turnOff(button, isOff) {
  button.setAttribute("aria-disabled", isOff); // it keeps the focus, which `disabled` would lose
}

// ---- The server --------------------------------------------------------------------------------

class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function refusal(answer) {
  const said = await answer.json().catch(() => null);
  const wait = answer.headers.get("Retry-After");
  const words = {
    401: key ? "This is not the server's key." : "This server asks for a key.",
    429: `Too many texts are waiting: try again ${wait ? `in ${wait} s` : "soon"}.`,
  };
  const other = said?.error?.message ?? `The server answered with error ${answer.status}.`;
  return new Refused(words[answer.status] ?? other, answer.status);
}

async function ask(path, body, signal) {
  const options = { signal, headers: key ? { Authorization: `Bearer ${key}` } : {} };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function askJson(path, body, signal) {
  return (await ask(path, body, signal)).json();
}

// Server-sent events: what stands behind each «data:».
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

// The chunks of a stream, up to its [DONE].
async function* chunks(answer) {
  for await (const data of events(answer)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message);
    yield chunk;
  }
  throw new Refused("The connection broke off.");
}

// The tokens of /v1/completions, with what else could stand there. Of several that are one
// character the last has its text.
function textTokens({ text, logprobs }) {
  const letters = [...text]; // places count characters as Python does, not halves of them
  const places = logprobs.text_offset;
  return logprobs.tokens.map((name, i) => {
    const [begin, end] = places.slice(i, i + 2).map((place) => place - places[0]);
    const ids = logprobs.top_ids[i];
    const others = Object.entries(logprobs.top_logprobs[i])
      .map(([other, logProb]) => ({ name: other, logProb, id: ids[other] }))
      .sort((a, b) => b.logProb - a.logProb);
    return {
      name,
      text: letters.slice(begin, end).join(""),
      id: logprobs.token_ids[i],
      logProb: logprobs.token_logprobs[i],
      others,
    };
  });
}

// What decodes the bytes that come behind tokens, the last of which may have begun a character.
function decoderBehind(tokens) {
  const decoder = new TextDecoder();
  const decode = (bytes) => decoder.decode(Uint8Array.from(bytes), { stream: true });
  for (const { bytes } of tokens.slice(-3)) decode(bytes ?? []);
  return decode;
}

// The same of /v1/chat/completions.
function chatTokens({ logprobs }, before) {
  const decode = decoderBehind(before);
  const named = ({ token, logprob, id, bytes }) => ({ name: token, logProb: logprob, id, bytes });
  return (logprobs?.content ?? []).map((said) => ({
    ...named(said),
    text: said.bytes ? decode(said.bytes) : said.token,
    others: said.top_logprobs.map(named),
  }));
}

// ---- Writing -----------------------------------------------------------------------------------

function settings() {
  const asked = { model: about.model, stream: true };
  for (const slider of SLIDERS) asked[slider.id] = Number(slider.value);
  if (asked.top_k === 0) delete asked.top_k;
  if ($("seed").value !== "") asked.seed = Number($("seed").value);
  return asked;
}

// The ids of a prompt: the API says them where it echoes the prompt, and here it writes nothing.
async function idsOf(prompt, signal) {
  if (prompt === "") return [];
  const asked = { model: about.model, prompt, max_tokens: 0, echo: true, logprobs: 0 };
  const { choices } = await askJson("v1/completions", asked, signal);
  return choices[0].logprobs.token_ids;
}

// How many tokens a conversation is, with the marks of its template: the API says it.
async function lengthOf(messages, signal) {
  const asked = { model: about.model, messages, max_tokens: 0 };
  return (await askJson("v1/chat/completions", asked, signal)).usage.prompt_tokens;
}

// Ask for what follows. Tokens that are there already are named by their ids, so that the model
// reads what it wrote, and not what its text would be cut into.
async function begin(next, signal) {
  const asked = settings();
  const written = next.tokens.map((token) => token.id);
  if (next.messages) next.nRead ??= await lengthOf(next.messages, signal);
  else next.promptIds ??= await idsOf(next.prompt, signal);
  const nRead = next.nRead ?? next.promptIds.length + 1;
  const room = about.max_len - nRead - written.length;
  if (room < 1) throw new Refused(`The text fills all ${about.max_len} tokens.`);
  asked.max_tokens = Math.min(asked.max_tokens, room);
  if (next.messages) {
    const chat = { ...asked, messages: next.messages, logprobs: true, top_logprobs: N_OTHERS };
    if (written.length) chat.answer_ids = written;
    return ask("v1/chat/completions", chat, signal);
  }
  const ids = [...next.promptIds, ...written];
  const text = { ...asked, prompt: ids.length ? ids : "", logprobs: N_OTHERS };
  return ask("v1/completions", text, signal);
}

async function receive(next, signal) {
  const answer = await begin(next, signal);
  const read = next.messages ? chatTokens : textTokens;
  let ended = null;
  for await (const { choices } of chunks(answer)) {
    next.tokens.push(...read(choices[0], next.tokens));
    if (next === draft) drawTokens();
    ended = choices[0].finish_reason ?? ended;
  }
  return ended;
}

function stop() {
  writing?.abort();
}

async function write(next) {
  stop();
  const control = new AbortController();
  const kept = next.tokens.length;
  past.push(draft);
  writing = control;
  show(next);
  tell("Writing …");
  complain(null);
  next.seed = settings().seed;
  try {
    next.ended = await receive(next, control.signal);
  } catch (error) {
    next.ended = "stopped";
    if (!control.signal.aborted) complain(error, () => writeAgain(next));
  }
  if (writing !== control) return; // another has begun
  writing = null;
  if (retry && next.tokens.length === kept) takeBack(next);
  else finish();
}

// Nothing came: the text is again what it was before.
function takeBack(next) {
  showAgain(past.pop());
  if (isNewTurn(next) && $("prompt").value === "") $("prompt").value = next.messages.at(-1).content;
}

function isNewTurn(next) {
  return Boolean(next.messages) && next.messages !== draft?.messages;
}

function writeAgain(next) {
  if (isNewTurn(next)) $("prompt").value = "";
  write({ ...next, tokens: next.tokens.slice() });
}

function finish() {
  if (draft.seed !== undefined) $("seed").value = draft.seed + 1;
  drawButtons();
  tell(ending());
  $("spoken").textContent = textOf(draft.tokens);
  judge(draft);
}

function ending() {
  const { tokens, ended, seed } = draft;
  const words = { stop: "Ended by itself", length: "Ended at its length", stopped: "Stopped" };
  const nats = -tokens.reduce((sum, token) => sum + token.logProb, 0) / tokens.length;
  const facts = [`${words[ended]}: ${tokens.length} token${tokens.length === 1 ? "" : "s"}`];
  if (tokens.length) facts.push(`perplexity ${Math.exp(nats).toFixed(2)}`);
  if (seed !== undefined) facts.push(`seed ${seed}`);
  return `${facts.join(", ")}.`;
}

// The grammar's verdict, where the model writes stories.
async function judge(judged) {
  if (!about.is_story || judged.messages || judged.tokens.length === 0) return;
  const text = judged.prompt + textOf(judged.tokens);
  try {
    const found = await askJson("verdict", { text });
    if (judged === draft && !writing) showVerdict(found);
  } catch (error) {
    complain(error, () => judge(judged));
  }
}

function showVerdict({ verdict, at, end, is_begun }) {
  const isRight = at === null;
  const isOpen = is_begun && draft.ended !== "stop"; // it may still become a story
  const words = isOpen ? "right so far" : `not valid: ${verdict}`;
  $("verdict").textContent = `Verdict: ${isRight ? verdict : words}.`;
  if (!isRight && !isOpen) markWrong(at, end);
}

// Places count characters as Python does, not JavaScript's halves of them.
function markWrong(at, end) {
  let place = [...draft.prompt].length;
  draft.tokens.forEach((token, i) => {
    const begin = place;
    place += [...token.text].length;
    if (place <= at || begin >= end) return;
    spans[i].classList.add("wrong");
    spans[i].ariaLabel += ", wrong";
  });
}

// ---- Drawing -----------------------------------------------------------------------------------

function tell(state) {
  $("state").textContent = state;
}

function complain(error, again = null) {
  const isBroken = error && !(error instanceof Refused);
  if (isBroken) console.warn(error);
  const words = isBroken ? "The server cannot be reached: does it still run?" : error?.message;
  $("trouble").textContent = words ?? "";
  retry = again;
  $("again").hidden = !error || !again || error.status === 401;
  if (error?.status === 401) askForKey();
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

function nameToken(token) {
  return `“${token.text}”, ${chance(token.logProb)}`;
}

function drawToken(token) {
  const p = Math.exp(token.logProb);
  const level = LEVELS.findIndex((low) => p >= low);
  const span = make("span", `p${level}`, (token.text || "▫").replaceAll("\n", "⏎\n"));
  span.tabIndex = spans.length === 0 ? 0 : -1;
  span.setAttribute("role", "button");
  span.ariaPressed = false;
  span.ariaLabel = nameToken(token);
  $("text").append(span);
  spans.push(span);
}

// What is drawn stays, so the focus and the pointer keep their place while a text is written.
function drawTokens() {
  for (const token of draft.tokens.slice(spans.length)) drawToken(token);
}

function canGoOn() {
  return Boolean(draft?.tokens.length);
}

function drawButtons() {
  turnOff($("stop"), !writing);
  turnOff($("on"), Boolean(writing) || !canGoOn());
  turnOff($("undo"), past.length === 0);
  $("text").classList.toggle("writing", Boolean(writing));
}

function show(next) {
  draft = next;
  spans = [];
  held = -1;
  $("text").replaceChildren();
  if (next?.prompt) $("text").append(make("span", "prompt", next.prompt));
  $("asked").hidden = !next?.messages;
  $("asked").textContent = next?.messages?.at(-1).content ?? "";
  $("verdict").textContent = "";
  $("spoken").textContent = "";
  tell("");
  if (next) drawTokens();
  drawTurns();
  look(-1);
  drawButtons();
}

function showAgain(before) {
  show(before);
  if (!before) return;
  tell(ending());
  judge(before);
}

function drawTurns() {
  $("before").hidden = turns.length === 0;
  const said = turns.map(({ role, content }) => {
    const turn = document.createElement("li");
    turn.append(make("h3", "", role === "user" ? "You" : "The model"), make("p", role, content));
    return turn;
  });
  $("turns").replaceChildren(...said);
}

// ---- A token, and what could stand in its place -----------------------------------------------

function look(i) {
  const token = draft?.tokens[i];
  $("looked").textContent = "No token is pointed at.";
  $("others").replaceChildren();
  $("look").classList.toggle("held", held >= 0);
  $("loose").hidden = held < 0;
  if (!token) return;
  const place = `Token ${i + 1} of ${draft.tokens.length}`;
  $("looked").textContent = `${place}: “${visible(token.name)}” with ${chance(token.logProb)}.`;
  if (held === i) $("looked").textContent += " Choose one to go on from it:";
  const stands = token.others.some((other) => other.id === token.id) ? [] : [token];
  $("others").append(...[...token.others, ...stands].map((other) => drawOther(i, other)));
}

function drawOther(i, other) {
  const row = document.createElement("li");
  const button = make("button", "");
  const bar = make("i", "");
  const isHere = other.id === draft.tokens[i].id;
  bar.style.width = `${100 * Math.exp(other.logProb)}%`;
  button.type = "button";
  button.append(make("code", "", visible(other.name)), bar, make("b", "", chance(other.logProb)));
  const here = isHere ? ", stands there" : "";
  button.ariaLabel = `“${other.name}”, ${chance(other.logProb)}${here}`;
  button.ariaCurrent = isHere;
  button.onclick = () => choose(i, other);
  row.append(button);
  return row;
}

function hold(i) {
  spans.forEach((span, n) => (span.ariaPressed = n === i));
  held = i;
  look(i);
}

function letGo() {
  const i = held;
  hold(-1);
  spans[i]?.focus();
}

// Go on from another token: what stood before it stays, what followed is written anew.
function choose(i, other) {
  const before = draft.tokens.slice(0, i);
  const { others } = draft.tokens[i];
  const isPart = /^(⟨\w\w⟩|\ufffd)+$/.test(other.name); // of a character: its last has the text
  const named = isPart ? "" : (other.text ?? other.name);
  const text = other.bytes ? decoderBehind(before)(other.bytes) : named;
  const isEnd = about.end_ids.includes(other.id);
  const tokens = isEnd ? before : [...before, { ...other, text, others }];
  const next = { ...draft, tokens };
  if (isEnd) {
    stop();
    writing = null;
    past.push(draft);
    show({ ...next, ended: "stop", seed: undefined });
    finish();
  } else {
    write(next);
  }
  goTo(spans.length - 1);
}

function goTo(i) {
  if (!spans[i]) return;
  for (const span of spans) span.tabIndex = -1;
  spans[i].tabIndex = 0;
  spans[i].focus();
}

// The token in the line above or below that stands nearest.
function inNextLine(i, step) {
  const here = spans[i].getBoundingClientRect();
  const places = spans.map((span) => span.getBoundingClientRect());
  const tops = places.map(({ top }) => step * (top - here.top)).filter((far) => far > 2);
  const nearest = Math.min(...tops);
  const far = ({ top, left }) =>
    Math.abs(step * (top - here.top) - nearest) < 2 ? Math.abs(left - here.left) : Infinity;
  const distances = places.map(far);
  const best = Math.min(...distances);
  return best < Infinity ? distances.indexOf(best) : i;
}

function walk(event) {
  const i = spans.indexOf(event.target);
  if (i < 0) return;
  const goals = {
    ArrowRight: () => goTo(i + 1),
    ArrowLeft: () => goTo(i - 1),
    ArrowDown: () => goTo(inNextLine(i, 1)),
    ArrowUp: () => goTo(inNextLine(i, -1)),
    Home: () => goTo(0),
    End: () => goTo(spans.length - 1),
    Enter: () => holdAndEnter(i),
    " ": () => holdAndEnter(i),
  };
  if (!goals[event.key]) return;
  event.preventDefault();
  goals[event.key]();
}

function holdAndEnter(i) {
  hold(i);
  $("others").querySelector("button")?.focus();
}

function walkOthers(event) {
  const rows = [...$("others").querySelectorAll("button")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const goal = rows[rows.indexOf(event.target) + step];
  if (!goal) return;
  event.preventDefault();
  goal.focus();
}

// ---- What a person does ------------------------------------------------------------------------

async function submit() {
  const said = $("prompt").value;
  if (!about) await start(); // somebody is quick, or the server was not there
  if (!about) return;
  if (!about.is_chat) {
    write({ prompt: said, promptIds: null, tokens: [] });
    return;
  }
  if (said.trim() === "") return;
  if (draft?.messages) {
    turns = [...draft.messages, { role: "assistant", content: textOf(draft.tokens) }];
    past = [];
    draft = null;
  }
  $("prompt").value = "";
  write({ messages: [...turns, { role: "user", content: said }], tokens: [] });
}

function undo() {
  if (past.length === 0) return;
  stop();
  writing = null;
  showAgain(past.pop());
}

function clear() {
  stop();
  writing = null;
  turns = [];
  past = [];
  show(null);
  $("prompt").focus();
}

function showSlider(slider) {
  const isOff = slider.id === "top_k" && slider.value === "0";
  const digits = Number(slider.step) < 1 ? 2 : 0;
  const shown = isOff ? "off" : Number(slider.value).toFixed(digits);
  slider.previousElementSibling.textContent = shown;
  slider.setAttribute("aria-valuetext", shown);
}

async function start() {
  complain(null);
  try {
    about = await askJson("about");
  } catch (error) {
    complain(error, start);
    return;
  }
  $("key-form").hidden = true;
  $("model").textContent = about.model;
  document.title = `Write with ${about.model}`;
  $("max_tokens").max = about.max_len - 1;
  showSlider($("max_tokens"));
  const label = about.is_story ? "How the story begins (or nothing)" : "Text to continue";
  $("prompt-label").textContent = about.is_chat ? "What you say" : label;
  $("clear").hidden = !about.is_chat;
  if (about.is_chat) $("now").after($("ask")); // a conversation grows downward
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  submit();
};
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  submit();
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  start();
};
$("stop").onclick = stop;
$("on").onclick = () => {
  if (!writing && canGoOn()) write({ ...draft, tokens: draft.tokens.slice() });
};
$("undo").onclick = undo;
$("clear").onclick = clear;
$("again").onclick = () => retry?.();
$("loose").onclick = letGo;
for (const slider of SLIDERS) {
  slider.oninput = () => showSlider(slider);
  showSlider(slider);
}

function point(event) {
  const i = spans.indexOf(event.target);
  if (i >= 0 && held < 0) look(i);
}
$("text").addEventListener("mouseover", point);
$("text").addEventListener("focusin", point);
$("text").addEventListener("keydown", walk);
$("text").addEventListener("click", (event) => {
  const i = spans.indexOf(event.target);
  if (i < 0) return;
  goTo(i);
  hold(held === i ? -1 : i);
});
$("others").addEventListener("keydown", walkOthers);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (writing) stop();
  else if (held >= 0) letGo();
});

$("settings").open = !matchMedia("(max-width: 899px)").matches;
drawButtons();
start();
