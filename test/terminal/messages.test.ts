/**
 * What goes wrong, and what both programs say then: situation → sentence. A sentence says what happened, why, and what to
 * do. Each one that stands in the source has its line here, or in the test that is named below.
 */
import { afterAll, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pc from "picocolors";
import { readCommand } from "../../native/terminal/command-line.ts";
import * as introducer from "../../native/terminal/introducer-arguments.ts";
import { listenProblem } from "../../native/terminal/introducer-prompt.ts";
import * as participant from "../../native/terminal/participant-arguments.ts";
import { describe as words, refusal } from "../../native/terminal/participant-story.ts";
import { resolve } from "../../native/host/connecting.ts";
import { fileProblem } from "../../native/uses/files.ts";
import { Lent } from "../../native/uses/lent.ts";
import { AllowList } from "../../native/uses/allow-list.ts";
import { parseTargets } from "../../native/uses/target.ts";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { failureReasons, type FailureReason, splitEndpoint, type UnlinkReason } from "../../protocol.ts";
import { Driven, link, met, outcome, startIntroducer } from "../driven-fixture.ts";
import { unanswering } from "../native-fixture.ts";
import { at } from "../participant/participant-fixture.ts";
import { root } from "../pty-fixture.ts";
import { freePort, target } from "../sockets-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(testMs);
const place = mkdtempSync(join(tmpdir(), "messages-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));

const noHost = "the introducer's host is empty: give a name or an IP address";
const couldNotLookUp = "the name introducer.example can't be looked up now (EAI_AGAIN): is there a network?";
const oneTarget = "1:2:3: a target is [HOST:]PORT, such as 8000 or nas:80";
const tooManyTargets = /^at most \d+ targets can be allowed$/;
const tooManyListeners = /^at most \d+ listeners can be allowed$/;

type Row = readonly [situation: string, sentence: string];
const typo = "has a typing mistake in its words: compare them, letter by letter, with the other side's";
const open = "in the open lobby anyone could use it: use a private room (--room WORDS)";
const others = "because the lobby is open to everyone: use a private room (--room WORDS)";

// --- what is typed ---------------------------------------------------------------------------------------

/** Arguments of the participant. To each sentence the program adds "; see --help", and it ends with 2. */
const usage: Row[] = [
  ["--nmae bob h", "there is no option --nmae; did you mean --name?"],
  ["-x h", "there is no option -x"],
  ["--name", "--name needs a NAME after it"],
  ["--json=1 h", "--json takes no value"],
  ["h --name 12", "--name must not be a number: that is how ids look"],
  ["h --name ", "--name must have 1 to 64 characters"],
  ["h --name operator", "--name must not be one of the program's own words"],
  ["h --room ", "--room must have 1 to 128 characters"],
  ["h --room k7xq-m2vp-9dfa-w4tz-2", `--room ${typo}`],
  ["k7xq-m2vp-9dfa-w4tz-2@h", `the room before the @ ${typo}`],
  ["receive k7xq-m2vp-9dfa-w4tz-2", `the code ${typo}`],
  [
    "x.k7xq-m2vp-9dfa-w4tz-2@h",
    "the introducer's key, after the dot, has a typing mistake: copy the code again",
  ],
  ["receive photos", "that is no code: one looks like gjec-p272-r0uw-hs8m-z@HOST"],
  ["h g", "one introducer at a time, and nothing after it but options"],
  ["h --via g", "one introducer at a time, not h and g"],
  ["a@h --room another", "--room names another room than the invitation: leave --room out"],
  ["recieve x@h", "there is no verb `recieve`; did you mean `receive`?"],
  ["send", "it needs a PATH: `send PATH …`"],
  ["share", "it needs a PORT: `share [HOST:]PORT …`"],
  ["share http", "share http: http is not a port (1 to 65535)"],
  ["share *:80", "share *:80: * is neither a host name nor an address"],
  ["share 1 2 3 4 5 6 7 8 9 10 11 12 13", "at most 12 ports can be shared"],
  ["share 8000-8012", "at most 12 ports can be shared"],
  ["reach a@h 99999", "`reach CODE [PORT]`: 99999 is no port to listen on (1 to 65535)"],
  ["receive a@h in more", "`receive CODE [DIR]` takes one folder, not also more"],
  ["send x --allow 22", "--allow does not go with `send`, which does one thing"],
  ["send x --room lobby", "`send` needs a private room: the lobby is open to everyone"],
  ["h --wait 5", "--wait needs somebody to wait for: --connect, --send, --pipe or a verb"],
  ["h --connect bob --wait never", "--wait takes seconds, more than 0, not never"],
  ["h --only-relay --direct", "--only-relay hides where you are, so --direct does not go with it"],
  ["h --only-relay --port 7777", "--only-relay hides where you are, so --port does not go with it"],
  ["h --only-relay --nat", "--only-relay hides where you are, so --nat does not go with it"],
  ["h --port 80", "--port takes a port from 1024 to 65535, not 80"],
  ["h --limit fast", "--limit takes bytes a second from 1K, such as 65536 or 1M, not fast"],
  ["h --remember", "--remember is for a private room: in the lobby nobody proves a name (--room WORDS)"],
  [
    "h --room r --allow 22@12",
    "--allow 22@12: who may reach it is said behind the @: a name must not be a number: that is how ids look",
  ],
  [
    "h --room r --allow 22@SHA256:12",
    "--allow 22@SHA256:12: who may reach it is said behind the @: SHA256: is followed by 64 hex digits",
  ],
  ["h --keep long", "--keep takes minutes from 0 to 30000, not long"],
  ["h --from bob", "--from says whose files --accept DIR takes: give both"],
  ["h --allow 22", `--allow would let anyone in, ${others}`],
  ["h --accept in", `--accept would let anyone in, ${others}`],
  ["h --pipe bob --json", "--pipe has standard output for itself: leave --json out"],
  ["h --room r --exclude !x", "--exclude takes nothing back in: a pattern can't begin with !"],
  ["h --room r --exclude /", "--exclude needs a pattern such as '*.tmp', node_modules or photos/raw"],
  ["h --to 2", "--to N goes with `send PATH …` alone"],
  ["send x --to none", "--to takes how many get it, from 1 to 999, not none"],
  ["h --connect", "in the lobby it must be said which PEER is meant: anyone may be there"],
  ["h -L 8080:bob", "--forward 8080:bob: a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80"],
  [
    "h -L ::1:8080:bob:80",
    "--forward ::1:8080:bob:80: parts are separated by colons, IPv6 addresses in brackets",
  ],
  [
    "h -L nas:8080:bob:80:80",
    "--forward nas:8080:bob:80:80: nas is not an address of this host to listen on (* for all)",
  ],
  [
    "h -L 53/udp:bob:53",
    "--forward 53/udp:bob:53: one end is UDP and the other is not: write /udp after both ports",
  ],
  [
    "h --pipe bob:53/udp",
    "--pipe bob:53/udp: a pipe is one stream of bytes, and UDP is none: a forward carries it (-L)",
  ],
  ["h --room x -R 1/udp:bob:1/udp", "--remote 1/udp:bob:1/udp: a peer listens on one port of TCP"],
  ["h --room x -R /tmp/x:bob:1", "--remote /tmp/x:bob:1: a peer listens on one port of TCP"],
  [
    "h --room x --allow-listen /tmp/x",
    "--allow-listen /tmp/x: peers may listen on [BIND:]PORT of TCP, such as 9000",
  ],
  ["h -R 1:bob:1", `--remote would let anyone in, ${others}`],
  ["h --allow-listen 1", `--allow-listen would let anyone in, ${others}`],
  ["h -D *:1:bob:1", "--socks *:1:bob:1: a SOCKS5 proxy is [BIND:]PORT:PEER, such as 1080:bob"],
  ["h -D 1080", "in the lobby it must be said which PEER is meant: anyone may be there"],
  ["h -D 1-2:bob", "--socks 1-2:bob: a SOCKS5 proxy listens on one port of TCP"],
  [
    "h -L 1:bob:/run/",
    "--forward 1:bob:/run/: the path of a socket is a whole one, such as /run/docker.sock",
  ],
  [
    `h -L 1:bob:/${"x".repeat(103)}`,
    `--forward 1:bob:/${"x".repeat(103)}: the path of a socket has at most 103 bytes, not 104`,
  ],
  ["h -L 1-3:bob:1-2", "--forward 1-3:bob:1-2: 3 here and 2 there: both must have as many ports"],
  ["h -L 1-129:bob:1-129", "--forward 1-129:bob:1-129: at most 128 ports in a row can be forwarded, not 129"],
  ["h -L 2-1:bob:1", "--forward 2-1:bob:1: 2-1 must begin with the lower port, as 1-2"],
  ["h --pipe a:b:c:d", "--pipe a:b:c:d: a pipe is PEER or PEER:[HOST:]PORT, such as bob or bob:22"],
  ["h --room x --allow 10.0.0.0/99:22", "--allow 10.0.0.0/99:22: /99 is no prefix length of an IPv4 network"],
  ["h --room x --allow nas/8:22", "--allow nas/8:22: nas/8 is not a network"],
  [
    "h --room x --allow 0.0.0.0:22",
    "--allow 0.0.0.0:22: 0.0.0.0 is no address that can be reached; 127.0.0.1 or [::1] is this host",
  ],
  [
    "h --room x --allow 1:2:3",
    "--allow 1:2:3: what is allowed is [HOST:]PORT, such as 22, 8000-8010, 10.0.0.0/8:443 or *:80",
  ],
  [
    "share 1:2:3",
    "share 1:2:3: what is allowed is [HOST:]PORT, such as 22, 8000-8010, 10.0.0.0/8:443 or *:80",
  ],
];

/** Arguments of the introducer, likewise. */
const introducerUsage: Row[] = [
  ["--hots x", "there is no option --hots; did you mean --host?"],
  ["7000 8000", "one port at a time, not also 8000"],
  ["http", "the port must be a number from 1 to 65535, not http"],
  ["--alternate x", "--alternate must be an IP address, not x"],
  ["--alternate 192.0.2.77", "--alternate must be an address of this host, and 192.0.2.77 is none"],
  [
    "--redis http://x",
    "the URL of --redis (or REDIS_URL) is wrong: it must be such as redis://HOST or rediss://HOST",
  ],
  ["--advertise h", "--advertise is for one of several introducers (--redis)"],
  ["--advertise h:x --redis redis://h", "--advertise takes HOST or HOST:PORT, not h:x"],
  ["ctl", "`ctl` needs a COMMAND, such as list"],
  ["ctl 7000 lst", "there is no command lst; did you mean `list`?"],
  ["ctl quit", "`ctl drain` ends it in order; a service is ended by its manager"],
  ["ctl list --host h", "--host does not go with `ctl`"],
  ["--log xml", "--log takes text or json, not xml"],
  ["--metrics x", "--metrics takes a port, or an address and a port such as [::1]:17000, not x"],
  ["--max-relays x", "--max-relays takes a number from 1 to 1000000, not x"],
  ["--no-relay --relay-rate 1M", "--no-relay leaves nothing for --relay-rate, --relay-total or --max-relays"],
  ["--relay-rate fast", "--relay-rate takes bytes a second from 1K, such as 65536 or 1M, not fast"],
  ["--probe-ports 1,1", "--probe-ports takes up to 4 different ports such as 7001,7002, or none; not 1,1"],
];

/** Lines at the participant's prompt that are no command. */
const commands: Row[] = [
  ["conect bob", "there is no command conect; did you mean `connect`?"],
  ["tell", "there is no command tell; `help` lists them"],
  ["list -x", "there is no option -x: list [-v]"],
  ["list now", "unexpected argument now: list [-v]"],
  ["connect", "`connect` needs a PEER: connect PEER ... [-v]"],
  ["say bob", "`say` needs a TEXT: say PEER TEXT"],
  ["accept", "`accept` needs an OFFER: accept OFFER [DIR]"],
  ["send bob 'a", "a quote is not closed: send PEER ... PATH ..."],
  [`say bob ${"x".repeat(9000)}`, "a text has at most 8192 characters; this one has 9000"],
];

/** What a reader throws. */
function said(read: () => unknown): string {
  try {
    read();
    return "nothing";
  } catch (error) {
    return (error as Error).message;
  }
}

test.each(usage)("participant %s", (line, sentence) => {
  const before = { ...process.env };
  for (const name of ["INTRODUCER", "INTRODUCER_KEY", "ROOM"]) delete process.env[name];
  expect(said(() => participant.readArguments(line.split(" ")))).toBe(sentence);
  Object.assign(process.env, before);
});

test.each(introducerUsage)("introducer %s", (line, sentence) => {
  expect(said(() => introducer.readArguments(line.split(" ")))).toBe(sentence);
});

test.each(commands)("> %s", (line, sentence) => {
  expect(said(() => readCommand(participant.commands, line))).toBe(sentence);
});

// --- programs that go on ---------------------------------------------------------------------------------

const taken = await target(() => {});
afterAll(() => taken[Symbol.asyncDispose]());

/** What alice types, alone in a private room, and what she is told. */
const alone: Row[] = [
  ["ping bob", "nobody here is called bob; `list` shows who is"],
  ["connect alice", "that is yourself; `list` shows the others"],
  ["join", "already registered with the introducer"],
  ["limit 12", "limit takes bytes a second from 1K, such as 65536 or 1M, not 12"],
  ["forget bob", "no names are remembered: start with --remember"],
  ["accept 1", "there is no offer 1; waiting: none"],
  ["cancel", "nothing is being sent or received"],
  ["unforward 8080", "nothing is forwarded from 127.0.0.1:8080; `forwards` shows what is"],
  ["unforward x:y:z", "x:y:z: what listens is [BIND:]PORT, such as 8080"],
  ["forward -D -R 1:bob:1", "`forward` takes one of -D and -R"],
  ["unforward -R 9000:bob", "nothing is forwarded from 127.0.0.1:9000 at bob; `forwards` shows what is"],
  ["disallow-listen 9000", "listening on 9000 is not allowed anyway; `allowed` shows what is"],
  ["disallow 22", "22 is not allowed anyway; `allowed` shows what is"],
  ["allow http", "http: http is not a port (1 to 65535)"],
  ["received /nowhere", "/nowhere: it is not there"],
  [
    `forward ${taken.port}:bob:1`,
    `can't listen on 127.0.0.1:${taken.port}: a program listens there already; choose another port`,
  ],
  [
    `forward ${taken.port}-${taken.port + 1}:bob:1-2`,
    `can't listen on 127.0.0.1:${taken.port}: a program listens there already; choose another port; so none of 127.0.0.1:${taken.port}-${taken.port + 1} is forwarded`,
  ],
  ["forward 192.0.2.1:9999:bob:1", "can't listen on 192.0.2.1:9999: this host has no such address"],
];
/** Then bob is there, too; then they are linked. */
const together: Row[] = [
  ["ping bob", "not linked with bob; `connect bob` first"],
  ["disconnect bob", "not linked with bob"],
  ["send bob /etc/hostname", "not linked with bob; `connect bob` first"],
];
const linked: Row[] = [
  ["connect bob", "already linked with bob"],
  ["send bob /nowhere", "/nowhere: it is not there"],
  ["cancel 7", "nothing is being sent or received"],
];
/** Then she leaves. */
const away: Row[] = [
  ["leave", "not registered with an introducer; `join` comes back"],
  ["whoami", "not registered with the introducer; `join` first"],
  ["echo", "not registered with the introducer; `join` first"],
];
const inTheLobby: Row[] = [
  ["allow 22", `\`allow\` is refused: ${open}`],
  ["accept 1", `\`accept\` is refused: ${open}`],
  ["allow-listen 1", `\`allow-listen\` is refused: ${open}`],
  ["forward -R 1:bob:1", `\`forward -R\` is refused: ${open}`],
];

async function tells(who: Driven, rows: readonly Row[]): Promise<void> {
  const told: Row[] = [];
  for (const [line] of rows) {
    who.type(line);
    told.push([line, (await who.next("error")).message]);
  }
  expect(told).toEqual([...rows]);
}

test("alone, with another one, linked, and away", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--room", "of messages", "--stay");
  await alice.registered;
  await tells(alice, alone);
  await using bob = new Driven(house.port, "bob", "--room", "of messages", "--stay");
  await met(alice, bob);
  await tells(alice, together);
  await link(alice, bob);
  await tells(alice, linked);
  alice.type("leave");
  await alice.next("introducer");
  await tells(alice, away);
});

test("in the lobby", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--stay");
  await alice.registered;
  await tells(alice, inTheLobby);
});

// --- programs that end -----------------------------------------------------------------------------------

const free = freePort();
const closing = Bun.listen({
  ...{ hostname: "127.0.0.1", port: 0 },
  socket: { data() {}, open: (socket) => void socket.end() },
});
const web = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("hello") });
const silent = unanswering();
const silentPort = splitEndpoint(silent.endpoint).port;
const house = startIntroducer();
afterAll(async () => {
  silent[Symbol.dispose]();
  closing.stop(true);
  await web.stop(true);
  await house[Symbol.asyncDispose]();
});
const file = join(place, "a file");
writeFileSync(file, "x");
const here = `127.0.0.1:${house.port}`;

/** The arguments, and the last line on standard error. */
const ends: [args: string[], sentence: string][] = [
  [
    [`127.0.0.1:${free}`],
    `cannot reach the introducer at 127.0.0.1:${free}: connection refused. Is it running (\`bun run introducer ${free}\`) and is that its address?`,
  ],
  [
    [`127.0.0.1:${silentPort}`],
    `cannot reach the introducer at 127.0.0.1:${silentPort}: no answer. Is it running (\`bun run introducer ${silentPort}\`) and is that its address, and does a firewall there let TCP port ${silentPort} in?`,
  ],
  [
    ["no.such.host.invalid"],
    "there is no host called no.such.host.invalid: check the spelling, or give an IP address",
  ],
  [
    ["hlep"],
    "there is no host called hlep: check the spelling, or give an IP address; did you mean `bun run participant help`?",
  ],
  [
    [`127.0.0.1:${closing.port}`],
    "the introducer did not register us: it closed the connection: is there an introducer at that port?",
  ],
  [
    [`127.0.0.1:${web.port}`],
    "the introducer did not register us: it sent what is not in the protocol (a line must be one JSON object): is that an introducer of this version?",
  ],
  [["send", "/nowhere", "--via", here], "/nowhere: it is not there"],
  [["send", "/dev/null", "--via", here], "nothing to send: null: it is a device"],
  [
    ["receive", "--via", here],
    "no code has come by standard input: give it there, or after the verb; see --help",
  ],
  [
    [here, "--room", "-"],
    "--room - asks for the words, and there is no terminal: give them in ROOM; see --help",
  ],
  [[], "which introducer? Give HOST[:PORT] (a verb: --via HOST), or set INTRODUCER; see --help"],
  [["host:99999"], '"host:99999" is no introducer: give HOST or HOST:PORT, port 1 to 65535; see --help'],
  [
    [here, "--key", join(place, "none")],
    `can't read the key in ${join(place, "none")}: there is no such file or folder`,
  ],
  [[here, "--key", place], `can't read the key in ${place}: it is a folder`],
  [
    [here, "--key", file],
    `${file} holds no key, such as gjec-p272-r0uw-hs8m-z; \`introducer --key FILE\` makes one`,
  ],
  [[here, "--room", "of messages", "--accept", file], `files can't be put into ${file}: it is not a folder`],
  [
    [here, "--room", "of messages", "-L", `${taken.port}:bob:1`],
    `can't listen on 127.0.0.1:${taken.port}: a program listens there already; choose another port`,
  ],
];

testAtOnce(4).each(ends)("participant %j ends", async (args, sentence) => {
  const { code, stderr } = await outcome(args);
  expect([code, stderr.trimEnd().split("\n").at(-1)]).toEqual([
    sentence.endsWith("; see --help") ? 2 : 1,
    `error: ${sentence}`,
  ]);
});

test("a name that can't be looked up is not one that there is not, nor none", async () => {
  await expect(resolve(" ", 7000)).rejects.toThrow(noHost);
  const dns = process.getBuiltinModule("node:dns/promises");
  const lookup = spyOn(dns, "lookup").mockRejectedValue(
    Object.assign(new Error("later"), { code: "EAI_AGAIN" }),
  );
  await expect(resolve("introducer.example", 7000)).rejects.toThrow(couldNotLookUp);
  lookup.mockRestore();
});

test("targets have a form and a number", () => {
  expect(said(() => parseTargets("1:2:3"))).toBe(oneTarget);
  const list = new AllowList();
  expect(said(() => Array.from({ length: 2000 }, (_, port) => list.add(String(port + 1))))).toMatch(
    tooManyTargets,
  );
  const nothing = () => {};
  const lent = new Lent({
    ...{ onProblem: nothing, onListening: nothing, onRefused: nothing, isMeant: () => true },
    liveLink: () => Promise.reject(new Error("none")),
  });
  expect(said(() => Array.from({ length: 2000 }, (_, port) => lent.allow(String(port + 1))))).toMatch(
    tooManyListeners,
  );
});

/** Where the introducer can't listen. */
const listens: [code: string, sentence: string][] = [
  ["EACCES", "port 80 needs more rights; choose one from 1024 on: bun run introducer 7000"],
  ["EADDRNOTAVAIL", "this host has no address 192.0.2.1; leave --host out to listen on all it has"],
];
test.each(listens)("introducer: %s", (code, sentence) => {
  expect(listenProblem(Object.assign(new Error(code), { code }), "192.0.2.1", 80)).toBe(sentence);
});

// --- what happens ----------------------------------------------------------------------------------------

const plain = pc.createColors(false);
const bob = { peer: 2, name: "bob" } as const;

/** Each reason why there is no link, and what is said to do. */
const failures: Record<FailureReason, string> = {
  "peer-left": "`--connect` waits until it is back",
  "refused-by-peer": "it may be ending, or be asked by too many: try again in a minute",
  "no-candidate-answered": "a firewall may be in the way; `nat` tells what kind of NAT each of you is behind",
  "both-mappings-random":
    "one of you could start with --port N, and have the router there forward TCP port N to that host, port N; or use IPv6, or another network such as a phone's; `nat` tells more",
  "only-relayed": "it needs an introducer that relays, and that nobody of the two uses --direct",
  "authentication-failed":
    "somebody else may have that address in your network; or the introducer does not tell the truth",
  "handshake-cut": "a firewall may cut off what it can't read; try another network",
  "relay-failed": "ask whoever runs the introducer",
  refused: "",
  cancelled: "",
  "introducer-lost": "it is tried again once the introducer is back",
  "timed-out": "the way loses packets, or is very slow; try again",
};
test.each(Object.entries(failures) as [FailureReason, string][])("failed: %s", (reason, next) => {
  const event = { event: "failed", ...bob, reason, detail: "" } as const;
  expect(words(event, plain)).toBe(
    `failed to link with bob (2): ${failureReasons[reason]} (${reason})\n  ${next}`,
  );
});

/** Where --direct was given, it may be left out. */
const relayable = ["no-candidate-answered", "both-mappings-random", "handshake-cut", "timed-out"] as const;
test.each(relayable)("failed with --direct: %s", (reason) => {
  const event = { event: "failed", ...bob, reason, detail: "" } as const;
  expect(words(event, plain, true)).toEndWith("\n  leave out --direct, and the introducer relays");
});

const ended: Record<UnlinkReason, string> = {
  disconnected: "we disconnected",
  quit: "we quit",
  "peer-disconnected": "the peer disconnected",
  "peer-quit": "the peer quit",
  replaced: "a newer link has taken its place",
  "connection-lost": "the connection broke, and no other one came about",
  "protocol-error": "the peer sent what is not in the protocol; it may be of another version",
  "peer-restarted": "the peer's program was started anew",
};
test.each(Object.entries(ended) as [UnlinkReason, string][])("unlinked: %s", (reason, sentence) => {
  const event = { event: "unlinked", ...bob, reason, detail: "" } as const;
  expect(words(event, plain)).toBe(`unlinked from bob (2): ${sentence}`);
});

const down = "127.0.0.1:8000: nothing listens there (ECONNREFUSED)";
const forwarded = { name: "bob", target: "localhost:8000" } as const;
const refusals: [Parameters<typeof refusal>[0], string][] = [
  [
    { ...forwarded, why: "no-answer", by: "peer", reason: down },
    `bob can't reach it: ${down}; is it running there?`,
  ],
  [
    { ...forwarded, why: "not-allowed", by: "peer", reason: "" },
    "bob does not let us reach localhost:8000; `allow localhost:8000` there would",
  ],
  [
    { ...forwarded, why: "no-link", by: "peer", reason: "none came within 30 s" },
    "no link with bob: none came within 30 s",
  ],
  [
    { ...forwarded, why: "no-answer", by: "us", reason: down },
    `bob wants localhost:8000 here: ${down}; is it running?`,
  ],
  [
    { ...forwarded, why: "not-allowed", by: "us", reason: "localhost:8000 is not allowed" },
    "bob wants localhost:8000 here: localhost:8000 is not allowed; `allow localhost:8000` would let it in",
  ],
];
test.each(refusals)("refused: %j", (event, sentence) => expect(refusal(event)).toBe(sentence));

/** What is wrong with a file, for both sides. */
const files: Record<string, string> = {
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EROFS: "the disk is read-only",
  EFBIG: "it is too large for the file system",
  ENAMETOOLONG: "its name is too long for the file system",
  ENOTDIR: "a file stands where a folder should be",
  ENOENT: "it is not there",
  EIO: "the disk fails",
  EISDIR: "a folder stands where a file should be",
  ELOOP: "its links lead in a circle",
  EMFILE: "this program has too many files open; `ulimit -n` raises the limit",
};
test.each(Object.entries(files))("a file: %s", (code, sentence) => {
  expect(fileProblem(Object.assign(new Error(`${code}: /a/path`), { code }))).toBe(sentence);
});

const listen = { name: "bob", peer: 2, listen: "127.0.0.1:9000" } as const;
const taken9000 = "can't listen on 127.0.0.1:9000: a program listens there already; choose another port";
const happens: [ParticipantEvent, string][] = [
  [
    { event: "forwarding", name: "bob", peer: 2, listen: "127.0.0.1:1080", target: "SOCKS5" },
    "SOCKS5 proxy at 127.0.0.1:1080 → bob → all that it allows",
  ],
  [
    { event: "listening", ...listen, by: "peer", target: "localhost:80" },
    "bob listens on 127.0.0.1:9000 → localhost:80 here",
  ],
  [{ event: "listening", ...listen, by: "us" }, "bob has us listen on 127.0.0.1:9000"],
  [
    { event: "listen-refused", ...listen, why: "not-allowed", by: "us", reason: "", more: 2 },
    "refused: bob wants to listen on 127.0.0.1:9000 here; `allow-listen 127.0.0.1:9000` would let it; and 2 others like it",
  ],
  [
    { event: "listen-refused", ...listen, why: "not-allowed", by: "peer", reason: "" },
    "refused: bob does not let us listen on 127.0.0.1:9000; `allow-listen 127.0.0.1:9000` there would",
  ],
  [
    { event: "listen-refused", ...listen, why: "no-answer", by: "us", reason: taken9000 },
    `refused: bob wants to listen here, but we ${taken9000}`,
  ],
  [
    { event: "listen-refused", ...listen, why: "no-answer", by: "peer", reason: taken9000 },
    `refused: bob was asked to listen, but it ${taken9000}; we ask again`,
  ],
  [{ event: "absent", name: "bbo", here: ["bob"] }, "bbo is not here; here: bob"],
  [
    { event: "alone" },
    "nobody else has used these words: does the other side have the same, and this introducer?",
  ],
  [
    { event: "broken", ...bob, reason: "it was reset" },
    "broken: the connection with bob (2) (it was reset); what is under way waits",
  ],
  [
    { event: "postponed", ...bob, retryInMs: 46_181.6, reason: "60 are enough" },
    "waiting 46 s before asking for bob (2) again: 60 are enough",
  ],
  [
    { event: "introducer", state: "lost", reason: "nothing heard from it for 60 s", retryInMs: 1_500 },
    "introducer lost: nothing heard from it for 60 s; trying again in 1.5 s",
  ],
  [
    { event: "hidden", rate: 1_048_576, total: 16_777_216 },
    "only by relay: peers are not told where you are; the introducer is, and carries each link, at most 1.0 MB/s each way and 16.8 MB/s for all of its links together",
  ],
  [
    {
      event: "moved",
      ...bob,
      route: "relay",
      local: at("10.0.0.1:1"),
      remote: at("203.0.113.3:7000"),
      limit: 1_048_576,
      gapMs: 46_181.6,
    },
    "moved with bob (2) to relay: 10.0.0.1:1 → 203.0.113.3:7000, after 46.2 s\n  the introducer carries it, at no more than 1.0 MB/s: no direct way has been found yet; a direct way is still looked for",
  ],
  [
    {
      event: "linked",
      ...bob,
      route: "relay",
      local: at("10.0.0.1:1"),
      remote: at("203.0.113.3:7000"),
      limit: 65_536,
      why: "both-mappings-random",
      elapsedMs: 46.2,
    },
    "linked with bob (2) by relay: 10.0.0.1:1 → 203.0.113.3:7000, 46.2 ms\n  the introducer carries it, at no more than 65.5 kB/s: both NATs choose a random port for every connection, so none can be guessed; a direct way is still looked for",
  ],
  [
    { event: "still-relayed", ...bob, reason: "no-candidate-answered", detail: "" },
    "still relayed with bob (2): none of the peer's endpoints answered (no-candidate-answered); a direct way is still looked for",
  ],
  [
    {
      event: "transfer-waiting",
      transfer: 1,
      direction: "sending",
      ...bob,
      what: "a",
      files: 1,
      folders: 0,
      bytes: 7,
    },
    "waiting for bob to accept a, 7 B",
  ],
];
test.each(happens)("%j", (event, sentence) => expect(words(event, plain)).toBe(sentence));

// --- all of them -----------------------------------------------------------------------------------------

/** Sentences of the source that another test shows, by a part of each. */
const elsewhere: Record<string, string> = {
  "(choose others with --probe-ports)": "introducer/program.test.ts",
  "with --only-relay nothing is measured": "hostile/hidden.test.ts",
  "so with --only-relay there can be no link": "hostile/hidden.test.ts",
  "no certificate is remembered for ": "hostile/by-whom.test.ts",
  "not all of it has arrived at ": "uses-files.test.ts",
  "is not trusted": "hostile/introducer.test.ts",
  "no probe ports": "introducer/probes.test.ts",
  "already on the way to the introducer": "participant/registration.test.ts",
  "introducers send us from one to another": "hostile/elsewhere.test.ts",
  "nobody else is here yet": "participant/roster.test.ts",
  "several are here, so say which one you mean": "participant/roster.test.ts",
  "is ambiguous: ": "participant/roster.test.ts",
  "that is a code without its introducer": "verbs.test.ts",
  "cannot read standard input": "terminal/surroundings.test.ts",
  "standard output is closed, so nothing": "uses.test.ts",
  "but ports are shared: type": "verbs.test.ts",
  "but files are sent: type": "verbs.test.ts",
  "shared there, and not ": "verbs.test.ts",
  "the other side has ended it": "verbs.test.ts",
  " can't be changed now: ": "introducer/control.test.ts",
  " needs a number after it": "introducer/control.test.ts",
  "no introducer takes commands at ": "introducer/control.test.ts",
  "is no introducer": "hostile/control.test.ts",
  "`ctl` needs --control PATH here": "introducer/control.test.ts",
  "the introducer is for those who have its key": "introducer/access.test.ts",
  "the key is not the introducer's": "introducer/access.test.ts",
  "INTRODUCER_KEY must be the key itself": "introducer/access.test.ts",
  " is forwarded already": "uses/remote.test.ts",
  "this participant has quit": "library.test.ts",
};
/** What only a race, a full disk, a hostile peer, or a program that uses the library brings about: read by eye. */
const byEye = [
  "is not in the room now",
  "has left the room, and nothing answers there any more",
  "was not told: it has left",
  "the introducer ended before it had answered",
  "cannot reach the introducer: ",
  "not sent: a text has at most ",
  "the other side shares what makes no sense: ",
  " DIR` puts it elsewhere",
];

const sentences: string[] = [
  ...[usage, introducerUsage, commands, alone, together, linked, away, inTheLobby].flatMap((rows) =>
    rows.map(([, sentence]) => sentence),
  ),
  ...[
    noHost,
    couldNotLookUp,
    oneTarget,
    "at most 9 targets can be allowed",
    "at most 9 listeners can be allowed",
  ],
  ...ends.map(([, sentence]) => sentence.replace("; see --help", "")),
];
const kinds = "UserError|UsageError|CommandError|SpecError|ProbePortError";

/** The text from a quote on, until it ends; what is put into it is `\0`. */
function literal(text: string, from: number): string {
  const quote = text[from]!;
  let found = "";
  for (let index = from + 1; index < text.length; index++) {
    if (text[index] === quote) return found;
    if (text[index] === "\\") found += text[++index]!;
    else if (quote === "`" && text.startsWith("${", index)) {
      index = endOfPart(text, index + 2);
      found += "\0";
    } else found += text[index]!;
  }
  throw new Error("a text does not end");
}

function endOfPart(text: string, from: number): number {
  for (let [index, depth] = [from, 0]; ; index++) {
    if (text[index] === "`") index = text.indexOf("`", index + 1);
    else if (text[index] === "{") depth++;
    else if (text[index] === "}" && depth-- === 0) return index;
  }
}

/** Each sentence that the source makes an error of, with `\0` for what differs; those of a few letters say nothing. */
function sources(): [file: string, sentence: string][] {
  const files = ["introducer.ts", ...new Bun.Glob("native/**/*.ts").scanSync({ cwd: root })];
  return files.flatMap((path) => {
    const text = readFileSync(join(root, path), "utf8");
    return [...text.matchAll(new RegExp(`(?:new (?:${kinds})|nobody)\\(\\s*(?=[\`"])`, "g"))]
      .map(({ index, 0: head }) => [path, literal(text, index + head.length)] as [string, string])
      .filter(([, sentence]) => sentence.replaceAll(/[\0\W]/g, "").length > 8);
  });
}

test("every sentence of the source is in these tables, or in the test that is named", () => {
  const escaped = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const untold = sources().filter(([, sentence]) => {
    const form = new RegExp(`(?:^| )${sentence.split("\0").map(escaped).join("[^]*")}(?:$|;)`);
    if (sentences.some((one) => form.test(one))) return false;
    if (byEye.some((one) => sentence.includes(one))) return false;
    const [part, test] = Object.entries(elsewhere).find(([one]) => sentence.includes(one)) ?? [];
    return part === undefined || !readFileSync(join(root, "test", test!), "utf8").includes(part);
  });
  expect(untold.map(([path, sentence]) => `${path}: ${sentence.replaceAll("\0", "…")}`)).toEqual([]);
});

test("the README shows messages that there are", () => {
  const [, table = ""] = /\n## If it does not work\n([^]*?)\n## /.exec(
    readFileSync(join(root, "README.md"), "utf8"),
  )!;
  const shown = table.split("\n").flatMap((row) => row.split("|")[1]?.match(/(?<=`)[^`,]+(?=`)/g) ?? []);
  const told = [
    ...sentences,
    ...Object.keys(failures).map((reason) => `(${reason})`),
    ...Object.values(ended),
    ...Object.values(files),
    ...[...refusals, ...happens].map(([, sentence]) => sentence),
  ];
  expect(shown.length).toBeGreaterThan(10);
  expect(shown.filter((message) => !told.some((one) => one.includes(message)))).toEqual([]);
});
