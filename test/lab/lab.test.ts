/** That the lab's NATs, firewalls and delays are what they are called, seen with real sockets. */
import { expect, setDefaultTimeout } from "bun:test";
import { readdir, readlink, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { Lab, labTest, type Host, type Mapping, type NatOptions, type Unsolicited } from "./lab.ts";
import type { Attempt } from "./probe-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);
const probe = `${import.meta.dir}/probe-fixture.ts`;
const localPort = 40_000;
/** An address of the Internet that nobody has. */
const nobody = "203.0.113.251";

async function serve(host: Host, ...ports: number[]): Promise<Bun.Subprocess> {
  const server = host.spawn([process.execPath, probe, "serve", ...ports.map(String)], { stdout: "pipe" });
  const { value } = await server.stdout.getReader().read();
  expect(new TextDecoder().decode(value)).toBe("listening\n");
  return server;
}

async function connect(
  from: Host,
  targets: (readonly [address: string | undefined, port: number])[],
  { timeoutMs = patienceMs, port = localPort } = {},
): Promise<Attempt[]> {
  const to = targets.map((target) => target.join(","));
  const out = await from.run([process.execPath, probe, "connect", `${timeoutMs}`, `${port}`, ...to]);
  return out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Attempt);
}

function observedPorts(attempts: Attempt[]): number[] {
  return attempts.map(({ observed }) => Number(observed?.split(",")[1]));
}

/** How long what never comes is waited for. */
const inVainMs = 300;
const waitFor = (outcome: string) => (outcome === "ETIMEDOUT" ? inVainMs : patienceMs);

/** Both connect to each other's port at that address; what each then reads from the other. */
async function meet(at: string, one: Host, onePort: number, other: Host, otherPort: number) {
  const attempts = await Promise.all([
    connect(one, [[at, otherPort]], { port: onePort }),
    connect(other, [[at, onePort]], { port: otherPort }),
  ]);
  return attempts.map(([attempt]) => attempt?.observed ?? attempt?.outcome);
}

/** alice behind such a NAT, and a server with four ports. */
async function behindNat(lab: Lab, options: NatOptions) {
  const nat = await lab.nat("nat", { owdMs: 1, ...options });
  const alice = await lab.host("alice", { behind: nat });
  const server = await lab.host("server", { owdMs: 1 });
  await serve(server, 7000, 7001, 7002, 7003);
  const targets = [7000, 7001, 7002, 7003].map((port) => [server.address, port] as const);
  return { nat, alice, server, targets };
}

async function mappedPorts(mapping: Mapping): Promise<number[]> {
  await using lab = await Lab.create();
  const { nat, alice, targets } = await behindNat(lab, { mapping });
  const attempts = await connect(alice, targets);
  expect(attempts.map(({ observed }) => observed?.split(",")[0])).toEqual(Array(4).fill(nat.address));
  return observedPorts(attempts);
}

function steps(ports: number[]): number[] {
  return ports.slice(1).map((port, index) => port - ports[index]!);
}

labTest.concurrent("endpoint-independent mapping keeps the port towards every destination", async () => {
  expect(await mappedPorts("endpoint-independent")).toEqual(Array(4).fill(localPort));
});

labTest.concurrent("sequential mapping takes the next port for every destination", async () => {
  expect(steps(await mappedPorts("sequential"))).toEqual([1, 1, 1]);
  expect(steps(await mappedPorts({ step: 7 }))).toEqual([7, 7, 7]);
  expect(steps(await mappedPorts("sequential-256"))).toEqual([256, 256, 256]);
});

labTest.concurrent("random mapping takes any port", async () => {
  const ports = await mappedPorts("random");
  expect(new Set(ports).size).toBeGreaterThan(1); // two of them may be the same
  expect(new Set(steps(ports)).size).toBeGreaterThan(1);
});

const outcomes: Record<Unsolicited, { ipv4: string; ipv6: string }> = {
  drop: { ipv4: "ETIMEDOUT", ipv6: "ETIMEDOUT" },
  reset: { ipv4: "ECONNREFUSED", ipv6: "ECONNREFUSED" },
  icmp: { ipv4: "ECONNREFUSED", ipv6: "ECONNREFUSED" },
  "icmp-prohibited": { ipv4: "EHOSTUNREACH", ipv6: "EACCES" },
};
const kinds = Object.keys(outcomes) as Unsolicited[];

labTest.concurrent.each(kinds)(
  "unsolicited: %s, at a NAT and at a firewall, IPv4 and IPv6",
  async (unsolicited) => {
    await using lab = await Lab.create();
    const nat = await lab.nat("nat", { unsolicited, owdMs: 1 });
    const firewall = await lab.firewall("firewall", { unsolicited, owdMs: 1 });
    const alice = await lab.host("alice", { behind: nat, ipv6: true });
    const bob = await lab.host("bob", { behind: firewall, ipv6: true });
    const stranger = await lab.host("stranger", { owdMs: 1, ipv6: true });
    await Promise.all([serve(alice, 7000), serve(bob, 7000), serve(stranger, 7000)]);

    const closed = [nat.address, alice.address6, bob.address, bob.address6].map((to) => [to, 7000] as const);
    const { ipv4, ipv6 } = outcomes[unsolicited];
    const attempts = await connect(stranger, closed, { timeoutMs: waitFor(ipv4) });
    expect(attempts.map(({ outcome }) => outcome)).toEqual([ipv4, ipv6, ipv4, ipv6]);

    const open = [stranger.address, stranger.address6].map((to) => [to, 7000] as const);
    const seen = (host: Host) => [`${host.publicAddress},${localPort}`, `${host.address6},${localPort}`];
    expect((await connect(alice, open)).map(({ observed }) => observed)).toEqual(seen(alice));
    expect((await connect(bob, open)).map(({ observed }) => observed)).toEqual(seen(bob));
  },
);

labTest.concurrent.each(kinds)(
  "unsolicited: %s can't steal the port that a mapping would keep",
  async (unsolicited) => {
    await using lab = await Lab.create();
    const { nat, alice, server, targets } = await behindNat(lab, { unsolicited });
    const { ipv4 } = outcomes[unsolicited];
    const how = { timeoutMs: waitFor(ipv4), port: 6999 };
    const [attempt] = await connect(server, [[nat.address, localPort]], how);
    expect(attempt?.outcome).toBe(ipv4);
    await serve(server, 6999);
    expect(observedPorts(await connect(alice, [[server.address, 6999], ...targets]))).toEqual(
      Array(5).fill(localPort),
    );
  },
);

labTest.concurrent(
  "two hosts that know their mappings meet through two NATs, and don't when ports are random",
  async () => {
    await using lab = await Lab.create();
    const crossingMs = 2_000; // with a SYN that is sent again
    for (const mapping of ["endpoint-independent", "random"] as const) {
      const natA = await lab.nat(`natA-${mapping}`, { mapping, owdMs: 5 });
      const natB = await lab.nat(`natB-${mapping}`, { owdMs: 5 });
      const alice = await lab.host(`alice-${mapping}`, { behind: natA });
      const bob = await lab.host(`bob-${mapping}`, { behind: natB });
      const expected = mapping === "random" ? "ETIMEDOUT" : "hello";
      const timeoutMs = mapping === "random" ? crossingMs : patienceMs;
      const attempts = await Promise.all([
        connect(alice, [[natB.address, 40_001]], { timeoutMs, port: 40_000 }),
        connect(bob, [[natA.address, 40_000]], { timeoutMs, port: 40_001 }),
      ]);
      const heard = attempts.map(([attempt]) => attempt?.observed ?? attempt?.outcome);
      expect(heard).toEqual([expected, expected]);
    }
  },
);

labTest.concurrent("a host may have IPv6 only, and a NAT may be behind a firewall", async () => {
  await using lab = await Lab.create();
  const firewall = await lab.firewall("firewall");
  const nat = await lab.nat("nat", { behind: firewall });
  const alice = await lab.host("alice", { behind: nat, ipv6: true });
  const server = await lab.host("server", { ipv4: false, ipv6: true });
  const open = await lab.host("open");
  await Promise.all([serve(server, 7000), serve(open, 7000)]);
  const [v6, v4] = await connect(alice, [
    [server.address6, 7000],
    [open.address, 7000],
  ]);
  expect([v6?.observed, v4?.observed]).toEqual([`${alice.address6},40000`, `${nat.address},40000`]);
  expect(() => server.address).toThrow("no IPv4");
});

labTest.concurrent("hairpinning: two hosts of a LAN meet at their NAT's public address", async () => {
  await using lab = await Lab.create();
  const nat = await lab.nat("nat", { hairpinning: true });
  const alice = await lab.host("alice", { behind: nat });
  const carol = await lab.host("carol", { behind: nat });
  expect(await meet(nat.address, alice, 40_000, carol, 40_001)).toEqual(["hello", "hello"]);
});

labTest.concurrent.each(kinds)("no hairpinning, or no mapping to hairpin to: %s", async (unsolicited) => {
  await using lab = await Lab.create();
  const on = await lab.nat("on", { hairpinning: true, unsolicited });
  const off = await lab.nat("off", { hairpinning: false, unsolicited });
  const alice = await lab.host("alice", { behind: on });
  const bob = await lab.host("bob", { behind: off });
  const { ipv4 } = outcomes[unsolicited];
  const how = { timeoutMs: waitFor(ipv4) };
  const attempts = await Promise.all([
    connect(alice, [[on.address, 7000]], how),
    connect(bob, [[off.address, 7000]], how), // an ICMP error that is back while connect() still runs counts next time
  ]);
  expect(attempts.flat().map(({ outcome }) => outcome)).toEqual([ipv4, ipv4]);
});

labTest.concurrent("two NATs in a row: the outer one's address is seen, its LAN is shared", async () => {
  await using lab = await Lab.create();
  const carrier = await lab.nat("carrier", { lan: "100.64.0.0/10", owdMs: 1, hairpinning: true });
  const [home, neighbour] = await Promise.all([
    lab.nat("home", { behind: carrier, lan: "192.168.1.0/24", hairpinning: true }),
    lab.nat("neighbour", { behind: carrier, lan: "192.168.1.0/24" }),
  ]);
  const [alice, dave, bob, server] = await Promise.all([
    lab.host("alice", { behind: home, ipv6: true, address: "192.168.1.77" }),
    lab.host("dave", { behind: home }),
    lab.host("bob", { behind: neighbour, ipv6: true }),
    lab.host("server", { owdMs: 1, ipv6: true }),
  ]);
  await serve(server, 7000);
  const [v4, v6] = await connect(alice, [
    [server.address, 7000],
    [server.address6, 7000],
  ]);
  expect(alice.publicAddress).toBe(carrier.address);
  expect([v4?.observed, v6?.observed]).toEqual([`${carrier.address},40000`, `${alice.address6},40000`]);

  expect(await meet(carrier.address, alice, 41_000, bob, 41_001)).toEqual(["hello", "hello"]);
  expect(await meet(carrier.address, alice, 42_000, dave, 42_001)).toEqual(["hello", "hello"]);
  expect(await meet(home.address, alice, 43_000, dave, 43_001)).toEqual(["hello", "hello"]);
});

labTest.concurrent(
  "a NAT forgets its mappings when flushed, and takes another address when told",
  async () => {
    await using lab = await Lab.create();
    const { nat, alice, targets } = await behindNat(lab, { mapping: "sequential" });
    const before = await connect(alice, targets);
    expect(await nat.conntrack()).toContain(`dst=${nat.address}`);
    await nat.flush();
    expect(await nat.conntrack()).not.toContain(`dst=${nat.address}`);
    await nat.changeAddress("203.0.113.200");
    const after = await connect(alice, targets);
    expect(after.map(({ observed }) => observed?.split(",")[0])).toEqual(Array(4).fill("203.0.113.200"));
    expect(observedPorts(after)).not.toEqual(observedPorts(before));
  },
);

labTest.concurrent("a signal to a spawned program reaches the program itself", async () => {
  await using lab = await Lab.create();
  const host = await lab.host("host");
  const script = `process.on("SIGINT", () => { console.log("SIGINT"); process.exit(7) }); setInterval(() => {}, 1000); console.log(process.pid)`;
  const program = host.spawn([process.execPath, "-e", script], { stdout: "pipe" });
  const reader = program.stdout.getReader();
  const text = async () => new TextDecoder().decode((await reader.read()).value).trim();
  expect(await text()).toBe(String(program.pid));
  program.kill("SIGINT");
  expect(await text()).toBe("SIGINT");
  expect(await program.exited).toBe(7);
});

labTest.concurrent("without a route nothing answers, and a name is used once", async () => {
  await using lab = await Lab.create();
  const host = await lab.host("host");
  expect((await connect(host, [[nobody, 7000]], { timeoutMs: inVainMs }))[0]?.outcome).toBe("ETIMEDOUT");
  await expect(lab.host("host")).rejects.toThrow("bad name");
});

/** The processes in these network namespaces, by their inode numbers. */
async function processesIn(namespaces: Set<string>): Promise<string[]> {
  const pids = (await readdir("/proc")).filter((entry) => /^\d+$/.test(entry));
  const links = await Promise.all(pids.map((pid) => readlink(`/proc/${pid}/ns/net`).catch(() => "gone")));
  return pids.filter((_, index) => namespaces.has(links[index]!));
}

/** What was killed may take a moment to be gone. */
async function emptied(namespaces: Set<string>): Promise<void> {
  const giveUpAt = performance.now() + patienceMs;
  while ((await processesIn(namespaces)).length > 0) {
    expect(performance.now()).toBeLessThan(giveUpAt);
    await Bun.sleep(10);
  }
}

labTest.concurrent("nothing is left of a lab, not even what its hosts' programs have started", async () => {
  const lab = await Lab.create();
  const host = await lab.host("host");
  const program = host.spawn(["sh", "-c", "sleep 1000 & readlink /proc/self/ns/net; wait"]);
  const { value } = await program.stdout.getReader().read();
  const namespaces = new Set([
    new TextDecoder().decode(value).trim(),
    (await lab.script("readlink /proc/self/ns/net")).trim(),
  ]);
  expect((await processesIn(namespaces)).length).toBeGreaterThanOrEqual(5); // holder, its cat, Internet, sh, sleep
  await lab[Symbol.asyncDispose]();
  await emptied(namespaces);
});

labTest.concurrent("nothing is left of a lab whose own process was killed", async () => {
  const script = `
    const { Lab } = await import(${JSON.stringify(`${import.meta.dir}/lab.ts`)});
    const lab = await Lab.create();
    const host = await lab.host("host");
    host.spawn(["sh", "-c", "sleep 1000 & readlink /proc/self/ns/net; wait"], { stdout: "inherit" });`;
  await using owner = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe" });
  const { value } = await owner.stdout.getReader().read();
  const namespaces = new Set([new TextDecoder().decode(value).trim()]);
  expect((await processesIn(namespaces)).length).toBeGreaterThanOrEqual(2);
  owner.kill("SIGKILL");
  await owner.exited;
  await emptied(namespaces);
});

// Milliseconds count: each by itself. What comes late does so by the machine, which may have other work: it is tried again.

/** Resolves once that took so long; never less. */
async function takes(leastMs: number, mostMs: number, once: () => Promise<number>): Promise<void> {
  const giveUpAt = performance.now() + patienceMs;
  for (;;) {
    const tookMs = await once();
    expect(tookMs).toBeGreaterThanOrEqual(leastMs);
    if (tookMs <= mostMs) return;
    expect(performance.now()).toBeLessThan(giveUpAt);
  }
}

labTest("the delay between two sites is the sum of theirs, and can be changed", async () => {
  await using lab = await Lab.create();
  const { nat, alice, server } = await behindNat(lab, { owdMs: 20 });
  await server.setWan({ owdMs: 20 });
  const targets = Array.from({ length: 5 }, () => [server.address, 7000] as const);
  const roundTrip = async () => {
    const attempts = await connect(alice, targets, { port: 0 });
    return Math.min(...attempts.map(({ elapsedMs }) => elapsedMs));
  };
  await takes(80, 85, roundTrip);
  await nat.setWan({ owdMs: 2.5 });
  await takes(45, 50, roundTrip);
});

labTest("loss loses about as much as asked, jitter delays at most as much as asked", async () => {
  await using lab = await Lab.create();
  const a = await lab.host("a", { owdMs: 1 });
  const b = await lab.host("b", { owdMs: 1 });
  await serve(b, 7000);
  const targets = Array.from({ length: 40 }, () => [b.address, 7000] as const);
  await b.setWan({ jitterMs: 10 });
  // Both ways together it is up to 20 ms, and more than 14 for one in six.
  const median = async () => {
    const elapsed = (await connect(a, targets, { port: 0 })).map(({ elapsedMs }) => elapsedMs);
    expect(Math.min(...elapsed)).toBeGreaterThanOrEqual(4);
    expect(Math.max(...elapsed)).toBeGreaterThan(12);
    return elapsed.sort((x, y) => x - y)[targets.length / 2]!;
  };
  await takes(4, 24, median);

  await b.setWan({ jitterMs: 0, loss: 1 });
  const lost = { timeoutMs: inVainMs, port: 0 };
  expect((await connect(a, [[b.address, 7000]], lost))[0]?.outcome).toBe("ETIMEDOUT");
  await b.setWan({ loss: 0.5 });
  // A quarter of 40 expected: SYN and SYN-ACK must both pass. What a busy machine is late with counts as lost.
  const giveUpAt = performance.now() + patienceMs;
  for (let connected = 0; connected === 0;) {
    expect(performance.now()).toBeLessThan(giveUpAt);
    const tries = await connect(a, targets, { timeoutMs: 50, port: 0 });
    connected = tries.filter(({ outcome }) => outcome === "connected").length;
    expect(connected).toBeLessThanOrEqual(25);
  }
});

labTest(
  "a limited access takes its time for each packet, and drops what its queue does not hold",
  async () => {
    await using lab = await Lab.create();
    const a = await lab.host("a", { owdMs: 1, upMbits: 0.024 });
    const b = await lab.host("b", { owdMs: 1 });
    await serve(b, 7000);
    const attempt = async (timeoutMs = patienceMs) =>
      (await connect(a, [[b.address, 7000]], { timeoutMs, port: 0 }))[0]!;
    const roundTrip = async () => (await attempt()).elapsedMs;
    await takes(24, 100, roundTrip); // a SYN of 60 bytes takes 20 ms, the answer none
    await a.setWan({ upQueueBytes: 59 });
    expect((await attempt(inVainMs)).outcome).toBe("ETIMEDOUT");
    await a.setWan({ upMbits: 0 });
    await takes(4, 24, roundTrip);
  },
);

labTest("every packet that crosses the Internet can be seen in a trace", async () => {
  const path = `${tmpdir()}/lab-trace-${process.pid}`;
  await using lab = await Lab.create({ trace: path });
  const [a, b] = [await lab.host("a", { owdMs: 1 }), await lab.host("b", { owdMs: 1 })];
  await connect(a, [[b.address, 7000]]);
  const lines = (await Bun.file(path).text()).trim().split("\n");
  await unlink(path);
  expect(lines.length).toBe(2);
  expect(lines[0]).toMatch(/ms  a: 203\.0\.113\.1:40000 > 203\.0\.113\.2:7000 S seq \d+, due \+2\.00$/);
  expect(lines[1]).toMatch(/ms  b: 203\.0\.113\.2:7000 > 203\.0\.113\.1:40000 RA seq 0, due \+2\.00$/);
});
