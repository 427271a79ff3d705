/**
 * What introducers keep in Redis and publish there: keys, values, letters, and the scripts that change them. Pure: it
 * connects to nothing. For native/introducer/redis/rooms.ts.
 *
 *   punch:live:I        says for 8 s that introducer I lives
 *   punch:{R}:who       hash: id → `I flags {peer}`, of everybody in room R; in the flags where its NAT stands
 *   punch:{R}:names     hash: name → id
 *   punch:{R}:seq       the room's version: begins at Redis's clock in µs, so that none comes again; +1 a change
 *   channel punch:{R}   `version + id value`, `version - id`; `!` for `-` of one that has come to another introducer
 *   channel punch:in:I  letters for introducer I, and answers to it
 *   channel punch:all   questions to all introducers
 *
 * Every change is one script, which checks, changes, counts and publishes: so all see the same changes in one order.
 */
import {
  checkToIntroducer,
  checkToParticipant,
  parseEndpoint,
  parseToParticipant,
  Refusal,
  roomProblem,
  routes,
  splitEndpoint,
  type Endpoint,
  type Peer,
  type Prediction,
} from "../../../protocol.ts";
import { sourceOf } from "../../shares/budget.ts";
import type { Answer, Guest, Letter, Occupant, Order, Participant, Question, Report } from "../rooms.ts";

/** How long an introducer counts as alive after its last beat: it may miss two. */
const liveMs = 8_000;
/** How long a room is kept after the last beat of anybody who is in it. */
const roomMs = 60_000;
/** Participants in one part of an answer, and how long one may be: each of them may have a room full of links. */
const partSize = 64;
const mostAnswerLength = 8 * 1024 * 1024;

const begin = `local who,seq,names,channel=KEYS[1],KEYS[2],KEYS[3],KEYS[4]
local function tell(text)
  if redis.call('EXISTS',seq)==0 then
    local now=redis.call('TIME')
    redis.call('SET',seq,string.format('%.0f',now[1]*1e6+now[2]))
  end
  local version=redis.call('INCR',seq)
  for _,key in ipairs({who,seq,names}) do redis.call('PEXPIRE',key,${roomMs}) end
  redis.call('PUBLISH',channel,string.format('%.0f',version)..text)
end
local function drop(id,name,sign)
  if redis.call('HDEL',who,id)==0 then return end
  if redis.call('HGET',names,name)==id then redis.call('HDEL',names,name) end
  tell(' '..sign..' '..id)
end
`;

/** Where no keys are named: those of {@link roomKeys}. */
export const scripts = {
  /**
   * id, value, name, our prefix, the id that it replaces. Returns what of it is somebody else's: `id`, `name`, or nothing.
   * Of a dead introducer nobody holds a name, nor of none.
   */
  put: `${begin}local id,value,name,own,replaced=ARGV[1],ARGV[2],ARGV[3],ARGV[4],ARGV[5]
local old=redis.call('HGET',who,id)
if old==value then return '' end
if old and old:sub(1,#own)~=own then return 'id' end
if replaced~='' then drop(replaced,name,'!') end
local holder=redis.call('HGET',names,name)
local held=holder and holder~=id and redis.call('HGET',who,holder)
if held and redis.call('EXISTS','punch:live:'..held:match('^%S*'))==1 then return 'name' end
redis.call('HSET',who,id,value)
redis.call('HSET',names,name,id)
tell(' + '..id..' '..value)
return ''`,
  /** id, what its name looks like. */
  remove: `${begin}drop(ARGV[1],ARGV[2],'-')`,
  /** Further key: that of an introducer's life; its prefix. All of its go, if it is dead at this very moment. */
  reap: `${begin}if redis.call('EXISTS',KEYS[5])==1 then return end
local all,gone=redis.call('HGETALL',who),{}
for at=1,#all,2 do
  local id,value=all[at],all[at+1]
  if value:sub(1,#ARGV[1])==ARGV[1] then
    gone[id]=true
    drop(id,'','-')
  end
end
local held=redis.call('HGETALL',names)
for at=1,#held,2 do if gone[held[at+1]] then redis.call('HDEL',names,held[at]) end end`,
  snapshot: `return {redis.call('GET',KEYS[2]) or '0',redis.call('HGETALL',KEYS[1])}`,
  /** Keys: of our life, then three of every room. Returns whether we were alive, and the version of every room. */
  beat: `local told={redis.call('EXISTS',KEYS[1])}
redis.call('SET',KEYS[1],'1','PX',${liveMs})
for at=2,#KEYS,3 do
  for key=at,at+2 do redis.call('PEXPIRE',KEYS[key],${roomMs}) end
  told[#told+1]=redis.call('GET',KEYS[at+1]) or '0'
end
return told`,
};

export const liveKey = (introducer: string) => `punch:live:${introducer}`;
export const inbox = (introducer: string) => `punch:in:${introducer}`;
export const everyone = "punch:all";

const channelHead = "punch:{";
export const channelOf = (room: string) => `${channelHead}${room}}`;
/** Of a channel of a room. */
export const roomOf = (channel: string) => channel.slice(channelHead.length, -1);
export const storedKeys = (room: string) => ["who", "seq", "names"].map((key) => `${channelOf(room)}:${key}`);
export const roomKeys = (room: string) => [...storedKeys(room), channelOf(room)];

/** What the values of an introducer begin with. */
export const prefixOf = (introducer: string) => `${introducer} `;

export function valueOf(introducer: string, own: Occupant): string {
  const { peer, hasMeasured, takesRelay, position } = own;
  const at = position ? `${splitEndpoint(position.endpoint).port}/${position.step}` : "";
  const flags = `${hasMeasured ? "m" : ""}${takesRelay ? "r" : ""}${at}`;
  return `${prefixOf(introducer)}${flags} ${JSON.stringify(peer)}`;
}

const valuePattern = /^(\S+) (m?r?)(\d{1,5}\/-?\d{1,4})? (.*)$/s;

/** At the address where its introducer sees it. */
function readPosition(observed: Endpoint, text: string): Prediction | undefined {
  const [port, step] = text.split("/").map(Number) as [number, number];
  const endpoint = parseEndpoint(observed.replace(/\d+$/, String(port)));
  return endpoint && { endpoint, step };
}

/** Undefined for what no introducer of this version has put there. */
export function readValue(room: string, id: string, value: string): Guest | undefined {
  const [, introducer = "", flags = "", at, json = ""] = valuePattern.exec(value) ?? [];
  const message = parsed(() => parseToParticipant(`{"type":"joined","peer":${json}}`));
  if (message?.type !== "joined" || String(message.peer.id) !== id) return undefined;
  const { peer } = message;
  return {
    ...{ peer, room, introducer, json: "" },
    hasMeasured: flags.includes("m"),
    takesRelay: flags.includes("r"),
    position: at === undefined ? undefined : readPosition(peer.public, at),
    observed: peer.public,
    subscriber: sourceOf(splitEndpoint(peer.public).address),
    roundTripMs: peer.roundTripMs,
  };
}

/** A change of a room. */
export interface Change {
  version: number;
  sign: "+" | "-" | "!";
  id: string;
  value: string;
}

export function readChange(text: string): Change | undefined {
  const [, version, sign, id = "", value = ""] = /^(\d+) ([-+!]) (\d+) ?(.*)$/s.exec(text) ?? [];
  return sign === undefined
    ? undefined
    : { version: Number(version), sign: sign as Change["sign"], id, value };
}

const orders: ReadonlySet<string> = new Set<Order["type"]>(["measure", "punch", "relay", "failed"]);
const reports: ReadonlySet<string> = new Set<Report["type"]>(["linked", "failed", "measured"]);

/** Undefined for what is none. An order can be of its sender alone. */
export function readLetter(text: string): Letter | undefined {
  const { is, from, to, introduction, lastsMs, message } = readObject(text);
  if (typeof from !== "number" || typeof to !== "number") return undefined;
  if (is === "report") {
    const report = parsed(() => checkToIntroducer(message)) as Report | undefined;
    return report && reports.has(report.type) ? { is, from, to, message: report } : undefined;
  }
  if (is !== "order" || typeof introduction !== "number" || typeof lastsMs !== "number") return undefined;
  const order = parsed(() => checkToParticipant(message)) as Order | undefined;
  if (!order || !orders.has(order.type)) return undefined;
  const about = order.type === "failed" ? order.peer : order.peer.id;
  return about === from ? { is, from, to, introduction, lastsMs, message: order } : undefined;
}

/** A question, by whom, and its number there. */
export interface Asked {
  by: string;
  number: number;
  question: Question;
}

export function writeQuestion({ by, number, question }: Asked): string {
  return JSON.stringify({ by, number, ...question });
}

/** Undefined for what is none. */
export function readQuestion(text: string): Asked | undefined {
  const { by, number, about, text: words, to } = readObject(text);
  if (!isName(by) || !isCount(number)) return undefined;
  if (about === "count" || about === "list") return { by, number, question: { about } };
  const notice = parsed(() => parseToParticipant(JSON.stringify({ type: "notice", text: words })));
  if (about !== "notice" || notice?.type !== "notice" || !(to === undefined || isCount(to))) return undefined;
  return { by, number, question: { about, text: notice.text, ...(to !== undefined && { to }) } };
}

/** An answer, or a part of one, by whom, and to which question. */
export interface AnswerPart extends Answer {
  by: string;
  number: number;
  more: boolean;
}

/** Tells one from a letter before it is read. */
export const answerStart = '{"type":"peers",';

/** Each part is a `peers` with more in it, and so is read as one. */
export function* writeAnswer(
  by: string,
  number: number,
  { participants, ...answer }: Answer,
): Generator<string, void> {
  const parts = Math.max(1, Math.ceil(participants.length / partSize));
  for (let part = 0; part < parts; part++) {
    const peers = participants.slice(part * partSize, (part + 1) * partSize);
    yield JSON.stringify({ type: "peers", by, number, ...answer, peers, more: part < parts - 1 });
  }
}

/** Undefined for what is none. */
export function readAnswer(text: string): AnswerPart | undefined {
  if (text.length > mostAnswerLength) return undefined;
  const { by, number, place: where, count, peers } = readObject(text);
  const line = parsed(() => parseToParticipant(text));
  const place = typeof where === "string" ? parseEndpoint(where) : undefined;
  if (line?.type !== "peers" || !place || !isName(by) || !isCount(number) || !isCount(count))
    return undefined;
  const participants = line.peers.map((peer, at) =>
    readParticipant(peer, (peers as Record<string, unknown>[])[at]!, place),
  );
  if (!participants.every((one) => one !== undefined)) return undefined;
  return { by, number, place, count, participants, more: line.more };
}

function readParticipant(
  peer: Peer,
  { room, links, punching }: Record<string, unknown>,
  introducer: Endpoint,
): Participant | undefined {
  if (typeof room !== "string" || roomProblem(room) !== undefined) return undefined;
  if (!Array.isArray(links) || !Array.isArray(punching)) return undefined;
  const read = links.map(readLink);
  if (!read.every((link) => link !== undefined) || !punching.every(isCount)) return undefined;
  return { ...peer, room, linked: read.map(({ id }) => id), links: read, punching, introducer };
}

function readLink(link: unknown): Participant["links"][number] | undefined {
  const { id, route, relayedBytes } = (link ?? {}) as Record<string, unknown>;
  const known = routes.find((one) => one === route);
  if (!isCount(id) || !known || !(relayedBytes === undefined || isCount(relayedBytes))) return undefined;
  return { id, route: known, ...(relayedBytes !== undefined && { relayedBytes }) };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

/** An introducer's. */
function isName(value: unknown): value is string {
  return typeof value === "string" && /^\S{1,64}$/.test(value);
}

/** Empty for what is none. */
function readObject(text: string): Record<string, unknown> {
  return parsed(() => JSON.parse(text) as Record<string, unknown> | null) ?? {};
}

function parsed<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof Refusal || error instanceof SyntaxError)) throw error;
    return undefined;
  }
}
