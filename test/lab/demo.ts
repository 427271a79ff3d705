/**
 * `bun run demo`: the whole story on one screen. Real programs behind real NATs in the lab, shown with what they
 * report and nothing else; where the lab can't run, the same with three processes on this host.
 */
import picocolors from "picocolors";
import { renderParticipants } from "../../native/terminal/introducer-tables.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { describe } from "../../native/terminal/participant-story.ts";
import { renderList } from "../../native/terminal/participant-list.ts";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { splitEndpoint } from "../../protocol.ts";
import { type Host, Lab, type Nat, unavailable } from "./lab.ts";
import {
  type IntroducerProgram,
  type ParticipantProgram,
  People,
  type Place,
  type Seen,
  thisHost,
} from "./people.ts";
import type { Attempt } from "./probe-fixture.ts";
import { freePort } from "../sockets-fixture.ts";

/** One-way delay of each site: any two are twice that apart. */
const owdMs = 10;
const deadlineMs = 60_000;
const width = 80;
const colors = picocolors.createColors(
  process.stdout.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== "dumb",
);
const nameColors = {
  alice: colors.cyan,
  bob: colors.magenta,
  carol: colors.blue,
  dave: colors.green,
  introducer: colors.yellow,
};
type Name = keyof typeof nameColors;

// --- what is shown ---------------------------------------------------------------------------------------

function say(text = ""): void {
  process.stdout.write(`${text}\n`);
}

let chapters = 0;
function chapter(title: string, explanation?: string): void {
  say(`\n${colors.bold(`${++chapters}. ${title}`)}`);
  if (explanation) say(colors.dim(explanation));
  say();
}

/** What somebody printed, each line after their name. */
function from(name: Name, text: string): void {
  const prefix = nameColors[name](`${name.padStart(10)} │`);
  for (const line of text.split("\n")) say(`${prefix} ${line}`.trimEnd());
}

function type(program: ParticipantProgram | IntroducerProgram, command: string): void {
  from(program.name as Name, colors.bold(`> ${command}`));
  program.type(command);
}

function showParticipant(name: Name, event: ParticipantEvent): void {
  // Lists are shown where they are asked for, attempts once it is known which one won.
  if (event.event === "peers" || event.event === "attempt") return;
  const text = describe(event, colors);
  if (text !== undefined) from(name, text);
}

function showIntroducer(event: IntroducerEvent): void {
  switch (event.event) {
    case "listening":
      return from("introducer", `listening on port ${event.port}`);
    case "joined":
      return from("introducer", `${event.name} (${event.id}) joined from ${event.public}`);
    case "punch":
      return from("introducer", `${event.a} and ${event.b}: punch towards each other, now`);
    case "linked":
      return from("introducer", `${event.id} reports its link with ${event.peer}`);
    case "failed":
      return from("introducer", `${event.id} failed to link with ${event.peer}: ${event.reason}`);
    case "refused":
      return from("introducer", `refused ${event.address}: ${event.message}`);
  }
}

function rule(text: string, length: number): string {
  return text.padStart(Math.floor((length + text.length) / 2), "─").padEnd(length, "─");
}

function diagram(natA: Nat, natB: Nat, { alice, bob, introducer }: Places): string {
  const cell = (text: string) => text.padStart(8 + Math.ceil(text.length / 2)).padEnd(17);
  const box = (text: string) => `│${cell(text)}│`;
  const line = (left: string, middle: string, right: string) => `  ${left}   ${middle}   ${right}`.trimEnd();
  const gap = " ".repeat(19);
  const up = (text: string) => ` ${cell(text)} `;
  return [
    line(up("alice"), gap, up("bob")),
    line(up(alice.address), gap, up(bob.address)),
    line(up("│"), gap, up("│")),
    line("┌────────┴────────┐", "┌─────────────────┐", "┌────────┴────────┐"),
    line(box("NAT"), box("introducer"), box("NAT")),
    line(box(natA.address), box(introducer.address), box(natB.address)),
    line("└────────┬────────┘", "└────────┬────────┘", "└────────┬────────┘"),
    line("         │         ", "         │         ", "         │         "),
    `  ─────────┴${rule(` the Internet, ${2 * owdMs} ms each way `, 43)}┴─────────`,
  ].join("\n");
}

/** The three attempts of one side, as it reported them. */
function attempts(program: ParticipantProgram, winner: Seen<ParticipantEvent & { event: "linked" }>): void {
  const all = program.all("attempt").filter(({ route }) => route !== "listen");
  const port = splitEndpoint(winner.local).port;
  const mark = (isWinner: boolean, text: string) =>
    from(program.name as Name, isWinner ? colors.green(`✓ ${text}`) : colors.dim(`· ${text}`));
  const accepted = winner.route === "listen";
  mark(accepted, `listen          on :${port}: ${accepted ? `accepted ${winner.remote}` : "nobody came"}`);
  for (const remote of new Set(all.map((attempt) => attempt.remote))) {
    const these = all.filter((attempt) => attempt.remote === remote);
    const { route, outcome, atMs } = these.at(-1)!;
    const tries = these.filter((attempt) => attempt.outcome === "started").length;
    const end = outcome === "started" ? "no answer" : `${outcome} after ${atMs.toFixed(1)} ms`;
    const isWinner = route === winner.route && remote === winner.remote;
    const times = tries === 1 ? "once" : `${tries} times`;
    mark(isWinner, `connect ${route.padEnd(7)} :${port} → ${remote} ${times}: ${end}`);
  }
}

// --- the story -------------------------------------------------------------------------------------------

interface Places {
  introducer: Place;
  alice: Place;
  bob: Place;
}

async function buildLab(stack: AsyncDisposableStack) {
  const lab = stack.use(await Lab.create());
  const [natA, natB] = await Promise.all([lab.nat("natA", { owdMs }), lab.nat("natB", { owdMs })]);
  const [alice, bob, introducer] = await Promise.all([
    lab.host("alice", { behind: natA }),
    lab.host("bob", { behind: natB }),
    lab.host("introducer", { owdMs }),
  ]);
  say(diagram(natA, natB, { alice, bob, introducer }));
  say("\nBoth NATs drop every packet from outside that answers nothing from inside.");
  return { lab, natA, alice, bob, introducer };
}

/** One plain connect from alice's host, to show that the NATs mean it. */
async function plainConnect(host: Host, bob: ParticipantProgram): Promise<void> {
  chapter("Without punching", "alice's host connects to bob's public endpoint, as any program would.");
  const { address, port } = splitEndpoint(bob.public);
  const probe = `${import.meta.dir}/probe-fixture.ts`;
  const out = await host.run([process.execPath, probe, "connect", "1000", "0", `${address},${port}`]);
  const { outcome, elapsedMs } = JSON.parse(out) as Attempt;
  from("alice", `connect ${bob.public}: ${colors.red(outcome)} after ${elapsedMs.toFixed(0)} ms`);
  if (outcome === "connected") throw new Error("a plain connect came through: these NATs filter nothing");
}

async function list(program: ParticipantProgram): Promise<void> {
  type(program, "list");
  const { peers } = await program.next("peers");
  say((await renderList(peers, width, colors)).join("")); // as wide as the screen: no room for a name before it
}

async function punch(
  introducer: IntroducerProgram,
  alice: ParticipantProgram,
  bob: ParticipantProgram,
): Promise<void> {
  chapter(
    "The punch",
    "alice asks; the introducer tells both; each listens and connects to the other's private\nand public endpoint, all on the port of its introducer connection, at the same time.",
  );
  type(alice, "connect bob");
  const [a, b] = await Promise.all([alice.next("linked"), bob.next("linked")]);
  await Promise.all([alice, bob].map((one) => introducer.next("linked", ({ id }) => id === one.id)));
  say("\n  Which attempts there were, and which one won:\n");
  attempts(alice, a);
  attempts(bob, b);
}

async function words(one: ParticipantProgram, other: ParticipantProgram, text: string): Promise<void> {
  type(one, `say ${other.name} ${text}`);
  await Promise.all([other.next("said", (said) => said.text === text), one.next("sent")]);
}

async function story(stack: AsyncDisposableStack): Promise<void> {
  const people = stack.use(new People());
  say(colors.bold("One TCP connection between two people behind NATs, carried by nobody in between.\n"));
  if (unavailable !== undefined)
    say(
      `The lab's NATs can't be had here: ${unavailable}.\nSo: three processes on this host, over loopback.`,
    );
  const hosts = unavailable === undefined ? await buildLab(stack) : undefined;
  const places: Places = hosts ?? { introducer: thisHost, alice: thisHost, bob: thisHost };

  chapter("Everyone registers", "The introducer tells each one how it looks from outside.");
  const port = hosts ? 7000 : freePort();
  const introducer = await people.introducer(places.introducer, port, showIntroducer);
  const join = (name: "alice" | "bob") => {
    const show = (event: ParticipantEvent) => showParticipant(name, event);
    return people.participant(name, places[name], introducer, ["-v"], show);
  };
  const alice = await join("alice");
  const bob = await join("bob");
  await alice.sees(bob);

  chapter("The list before");
  await list(alice);
  if (hosts) await plainConnect(hosts.alice, bob);
  await punch(introducer, alice, bob);
  chapter("A few words", "Encrypted, and past the introducer.");
  await words(alice, bob, "hello, bob, can you hear me?");
  await words(bob, alice, "loud and clear");
  chapter("The list after");
  await list(alice);
  if (hosts) {
    await reboot(hosts.natA, alice, bob);
    await relayed(hosts.lab, people, introducer);
  }
  chapter("What the introducer knows");
  type(introducer, "list");
  const { participants } = await introducer.next("participants");
  say((await renderParticipants(participants, colors, Date.now())).join(""));
}

// --- main ------------------------------------------------------------------------------------------------

/** What a link is for: it outlives its connections. */
async function reboot(natA: Nat, alice: ParticipantProgram, bob: ParticipantProgram): Promise<void> {
  chapter(
    "alice's router is restarted, and gets another address",
    "Every mapping is gone, and with them the connection. What is said meanwhile waits.",
  );
  await natA.changeAddress("203.0.113.99");
  type(alice, "say bob can you still hear me?");
  await Promise.all([
    bob.next("said", ({ text }) => text === "can you still hear me?"),
    ...[alice, bob].map((one) => one.next("moved")),
  ]);
  type(bob, "say alice as if nothing had happened");
  await alice.next("said", ({ text }) => text === "as if nothing had happened");
}

/** Where nothing can be dug. */
async function relayed(lab: Lab, people: People, introducer: IntroducerProgram): Promise<void> {
  chapter(
    "Two NATs that choose random ports",
    "Neither can be guessed, so the introducer relays; it sees bytes of TLS between the two.",
  );
  const join = async (name: "carol" | "dave") => {
    const nat = await lab.nat(`nat-${name}`, { owdMs, mapping: "random" });
    const place = await lab.host(name, { behind: nat });
    const show = (event: ParticipantEvent) => {
      const isTold = ["linked", "said", "punching", "mapping"].includes(event.event);
      if (isTold) showParticipant(name, event);
    };
    return people.participant(name, place, introducer, ["--room", "two of us"], show);
  };
  const [carol, dave] = await Promise.all([join("carol"), join("dave")]);
  await Promise.all([carol.sees(dave), carol.next("mapping"), dave.next("mapping")]);
  type(carol, "connect dave");
  await Promise.all([carol.next("linked"), dave.next("linked")]);
  await words(carol, dave, "not direct, but private");
}

/** Tells the story until it ends or is stopped, then takes everything down. */
async function tellStory(): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const stopped = Promise.withResolvers<never>();
  const timer = setTimeout(() => stopped.reject(new Error("it took longer than a minute")), deadlineMs);
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => stopped.reject(new Error(`stopped by ${signal}`)));
  }
  await Promise.race([story(stack), stopped.promise]).finally(() => clearTimeout(timer));
}

const startedAt = performance.now();
try {
  await tellStory();
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  say(`\n${colors.green("done")} in ${seconds} s; everything is taken down again.`);
  process.exit(0);
} catch (error) {
  say(`\n${colors.red("failed")}: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
}
