/**
 * From the `connect` command to a link that both sides can use, between the real programs behind two dropping
 * NATs, against what physics asks for. All times by this process's clock: from before the command is written to
 * the other's standard input until the later one's `linked` line is read from its standard output.
 */
import { Lab } from "../lab/lab.ts";
import { now, People, type ParticipantProgram } from "../lab/people.ts";
import { median, table } from "./run.ts";

const oneWayDelaysMs = [20, 60];
const tries = 25;
/** Median to physical limit. */
const goal = 1.2;

interface Try {
  /** Until alice, who asks and is the TLS client, has the link; bob has it later, told by her. */
  askerMs: number;
  bothMs: number;
}

async function link(alice: ParticipantProgram, bob: ParticipantProgram): Promise<Try> {
  const startedAt = now();
  alice.type("connect bob");
  const [a, b] = await Promise.all([alice.next("linked"), bob.next("linked")]);
  alice.type("disconnect bob");
  await Promise.all([alice.next("unlinked"), bob.next("unlinked")]);
  return { askerMs: a.at - startedAt, bothMs: Math.max(a.at, b.at) - startedAt };
}

/** The first try, and the others. */
async function measure(delayMs: number): Promise<[Try, Try[]]> {
  await using lab = await Lab.create();
  await using people = new People();
  const owdMs = delayMs / 2;
  const natA = await lab.nat("natA", { owdMs });
  const natB = await lab.nat("natB", { owdMs });
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const alice = await people.participant("alice", await lab.host("alice", { behind: natA }), introducer);
  const bob = await people.participant("bob", await lab.host("bob", { behind: natB }), introducer);
  await alice.sees(bob);
  // The introducer measures the round trip three times after registering; so does this.
  for (const one of [alice, bob]) {
    for (let round = 0; round < 3; round++) {
      one.type("echo");
      await one.next("echo");
    }
  }
  const first = await link(alice, bob);
  const others: Try[] = [];
  while (others.length < tries) others.push(await link(alice, bob));
  return [first, others];
}

export async function bench(): Promise<void> {
  const ms = (value: number) => `${value.toFixed(1)} ms`;
  const rows = [["one-way delay", "limit", "first", "median", "worst", "asker's median", "median ÷ limit"]];
  for (const delayMs of oneWayDelaysMs) {
    // owd(A → I) + owd(I → B) + RTT(A, B) for TCP + RTT(A, B) for TLS 1.3
    const limitMs = delayMs + delayMs + 2 * (2 * delayMs);
    const [first, others] = await measure(delayMs);
    const both = others.map(({ bothMs }) => bothMs);
    rows.push([
      ms(delayMs),
      ms(limitMs),
      ms(first.bothMs),
      ms(median(both)),
      ms(Math.max(...both)),
      ms(median(others.map(({ askerMs }) => askerMs))),
      `${(median(both) / limitMs).toFixed(2)} ×`,
    ]);
  }
  console.log(table(rows));
  console.log(`
Two dropping NATs, ${tries} tries after the first one in the same programs; goal ${goal} ×.
The limit is owd(A→I) + owd(I→B) + 2·RTT(A,B); bob learns half a round trip later than alice that the
connection is the one, because she has to tell him.`);
}
