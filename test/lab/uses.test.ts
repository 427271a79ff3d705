/**
 * What a link is for, with other people's software through two NATs: OpenSSH by a forward and by a pipe, before and
 * after its NAT is rebooted; nginx under a load; a game of UDP, and dig.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { createHash, randomFillSync } from "node:crypto";
import { createReadStream, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { addressOfAll, answersOf, digOptions } from "../dns-fixture.ts";
import { until } from "../native-fixture.ts";
import { missing, unlessRequired } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { freeUdpPort } from "../udp-fixture.ts";
import { type Host, Lab, labTest, labTestNeeding, type Nat } from "./lab.ts";
import { noNginx, Nginx } from "./nginx.ts";
import { People, root, type ParticipantProgram } from "./people.ts";
import { apart, owdMs, type Hosts } from "./sides.ts";
import { noSshd, Sshd } from "./sshd.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);

/** Bytes that scp copies, more than a session keeps until they are acknowledged: `SCP_BYTES=…` for more. */
const scpBytes = Number(process.env.SCP_BYTES ?? 72 * 1024 * 1024);
const room = ["--room", "lab-of-uses"];
const freeAddress = "203.0.113.220";

const sshTest = labTestNeeding(noSshd);
const digTest = labTestNeeding(unlessRequired(missing(["dig"], "package bind9-dnsutils")));
const nginxTest = labTestNeeding(noNginx);

sshTest.concurrent(
  "ssh and scp by a forward; a session in a terminal outlives its NAT's reboot and new address",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    await using sshd = await Sshd.start(hosts.bob);
    const port = freePort();
    const { alice } = await gather(lab, people, hosts, sshd.port, ["-L", `${port}:bob:${sshd.port}`]);
    const options = [...sshd.clientOptions, "-o", `Port=${port}`];

    const session = hosts.alice.spawn(["ssh", ...options, "-tt", "bob@127.0.0.1"], {
      stdin: "pipe",
      stdout: "pipe",
    });
    const types = (line: string) => (session.stdin.write(`${line}\n`), session.stdin.flush());
    let screen = "";
    const reading = (async () => {
      for await (const chunk of session.stdout.pipeThrough(new TextDecoderStream())) screen += chunk;
    })();
    await types('echo "shell-$$-$((6 * 7))"; tty');
    await until("the shell answers", () => /shell-\d+-42\s[^]*\/dev\/pts\/\d/.test(screen));
    const shell = /shell-(\d+)-42/.exec(screen)![1];

    await expectCopied(hosts, sshd, ["scp", ...options], "127.0.0.1");

    const nat = hosts.alice.behind as Nat;
    await nat.flush();
    await nat.changeAddress(freeAddress);
    await types('echo "again-$$-$((7 * 7))"');
    await alice.next("moved");
    await until("the shell answers again", () => screen.includes(`again-${shell}-49`));
    await types("exit 7");
    expect(await session.exited).toBe(7);
    await reading;
    expect(alice.all("unlinked")).toEqual([]);
  },
);

sshTest.concurrent("ssh and scp by a pipe, as ProxyCommand", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart()(lab);
  await using sshd = await Sshd.start(hosts.bob);
  const { introducer } = await gather(lab, people, hosts, sshd.port);
  const command = [process.execPath, join(root, "participant.ts"), introducer.endpoint, "--name", "carol"];
  const proxy = [...command, ...room, "-q", "--pipe", "bob:%p"].join(" ");
  const options = [...sshd.clientOptions, "-o", `Port=${sshd.port}`, "-o", `ProxyCommand=${proxy}`];
  const env = { ...process.env, XDG_STATE_HOME: people.stateOf("carol") };
  const login = hosts.alice.spawn(["ssh", ...options, "bob@bob", "id -un; exit 3"], {
    ...{ env, stdout: "pipe", stderr: "pipe" },
  });
  expect(await Promise.all([login.stdout.text(), login.stderr.text(), login.exited])).toEqual([
    "bob\n",
    "",
    3,
  ]);
  await expectCopied(hosts, sshd, ["env", `XDG_STATE_HOME=${env.XDG_STATE_HOME}`, "scp", ...options], "bob");
});

labTest.concurrent(
  "a code is all that the other side needs: a file, then a port, through both NATs",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
    const folder = mkdtempSync(join(tmpdir(), "codes-"));
    const started = (host: Host, name: string, args: string[]) =>
      host.spawn([process.execPath, join(root, "participant.ts"), ...args], {
        cwd: folder,
        env: { ...process.env, XDG_STATE_HOME: people.stateOf(name), INTRODUCER: introducer.endpoint },
        ...({ stdin: "ignore", stdout: "pipe", stderr: "pipe" } as const),
      });
    const answered = async (giver: ReturnType<typeof started>) => {
      let told = "";
      for await (const chunk of giver.stderr.pipeThrough(new TextDecoderStream(), { preventCancel: true })) {
        const line = / {2}bun run participant (.*)\n/.exec((told += chunk))?.[1];
        if (line !== undefined) return line.split(" ");
      }
      throw new Error(`no line for the other side: ${told}`);
    };
    try {
      await Bun.write(join(folder, "note.txt"), "through two NATs");
      const sender = started(hosts.alice, "alice", ["send", "note.txt"]);
      const receiver = started(hosts.bob, "bob", [...(await answered(sender)), "received"]);
      expect(await Promise.all([sender.exited, receiver.exited])).toEqual([0, 0]);
      expect(await Bun.file(join(folder, "received/note.txt")).text()).toBe("through two NATs");

      const port = freePort();
      const served = hosts.alice.spawn([process.execPath, "-e", serving(port)], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      await served.stdout.getReader().read();
      const sharer = started(hosts.alice, "alice", ["share", `127.0.0.1:${port}`]);
      const reacher = started(hosts.bob, "bob", await answered(sharer));
      const { value } = await reacher.stdout.getReader().read();
      const url = new TextDecoder().decode(value).trim();
      const asking = `process.stdout.write(await (await fetch("${url}")).text())`;
      expect(await hosts.bob.run([process.execPath, "-e", asking])).toBe("hello from alice");
      for (const one of [reacher, sharer, served]) one.kill("SIGINT");
      expect(await Promise.all([reacher.exited, sharer.exited])).toEqual([0, 0]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);

const serving = (port: number) =>
  `Bun.serve({ port: ${port}, hostname: "127.0.0.1", fetch: () => new Response("hello from alice") }); console.log(1)`;

nginxTest.concurrent("nginx under a load, while the NAT of its client is rebooted", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart()(lab);
  const port = freePort();
  await using nginx = await Nginx.start(hosts.bob);
  const { alice } = await gather(lab, people, hosts, nginx.port, ["-L", `${port}:bob:${nginx.port}`]);
  await alice.next("linked");
  // Until it is told that it is enough.
  const duration = `-d${(2 * testMs) / 1000}s`;
  const load = ["wrk", "-t1", "-c50", duration, "--timeout", "100s", `http://127.0.0.1:${port}/`];
  const wrk = hosts.alice.spawn(load, { stdout: "pipe" });
  const answered = async (count: number) => {
    const enough = (await nginx.requests()) + count;
    while ((await nginx.requests()) < enough) await Bun.sleep(20);
  };
  await answered(100);
  await (hosts.alice.behind as Nat).changeAddress(freeAddress);
  await alice.next("moved");
  await answered(100);
  wrk.kill("SIGINT");
  const report = await wrk.stdout.text();
  expect(Number(/(\d+) requests in/.exec(report)![1])).toBeGreaterThan(100);
  expect(report).not.toMatch(/Non-2xx|Socket errors: (?!connect 0, read 0, write 0)/);
});

digTest.concurrent("a game of UDP and dig, before and after the NAT of one is rebooted", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart()(lab);
  const fixture = (name: string) => [process.execPath, join(root, `test/${name}-fixture.ts`)];
  const serve = async (command: string[]): Promise<number> => {
    const { stdout } = hosts.bob.spawn(command, {
      ...({ stdin: "ignore", stdout: "pipe", stderr: "inherit" } as const),
    });
    return Number(new TextDecoder().decode((await stdout.getReader().read()).value));
  };
  const ports = [await serve([...fixture("game"), "serve"]), await serve(fixture("dns"))];
  const [game, names] = ports.map(() => freeUdpPort()) as [number, number];
  const specs = [game, names].flatMap((port, index) => ["-L", `${port}/udp:bob:${ports[index]}/udp`]);
  const { alice } = await gather(lab, people, hosts, "1-65535/udp", specs);
  await alice.next("linked");
  const plays = (name: string, other: string, far: number) =>
    hosts.alice.run([...fixture("game"), "play", `${game}`, name, other, `${far}`]);
  const asks = async () => answersOf(await hosts.alice.run(["dig", ...digOptions(names), "host.example"]));
  expect(await asks()).toEqual([addressOfAll]);
  const far = 100;
  const playing = Promise.all([plays("ann", "ben", far), plays("ben", "ann", far)]);
  const nat = hosts.alice.behind as Nat;
  await nat.flush();
  await nat.changeAddress(freeAddress);
  await alice.next("moved");
  expect(await playing).toEqual(["old: 0\n", "old: 0\n"]);
  expect(await asks()).toEqual([addressOfAll]);
  expect(alice.all("forward-refused")).toEqual([]);
});

// --- what they have in common ----------------------------------------------------------------------------

/** alice and bob, who lets others reach that port. */
async function gather(
  lab: Lab,
  people: People,
  hosts: Hosts,
  allowed: number | string,
  options: string[] = [],
) {
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const serving = [...room, "--allow", String(allowed), "--stay"];
  const bob = await people.participant("bob", hosts.bob, introducer, serving);
  const alice: ParticipantProgram = await people.participant("alice", hosts.alice, introducer, [
    ...room,
    ...options,
    "--stay",
  ]);
  return { introducer, alice, bob };
}

function sha256OfFile(path: string): Promise<string> {
  const hash = createHash("sha256");
  return new Promise((resolve, reject) => {
    createReadStream(path)
      .on("data", (chunk) => hash.update(chunk))
      .on("error", reject)
      .on("end", () => resolve(hash.digest("hex")));
  });
}

/** Random bytes, copied to bob's home. */
async function expectCopied(hosts: Hosts, sshd: Sshd, scp: string[], name: string): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "scp-"));
  try {
    const file = join(folder, "random");
    const block = randomFillSync(Buffer.alloc(1024 * 1024));
    const writer = Bun.file(file).writer();
    for (let left = scpBytes; left > 0; left -= block.length) {
      block.writeDoubleLE(left); // no two alike
      writer.write(block.subarray(0, left));
      await writer.flush();
    }
    await writer.end();
    await hosts.alice.run([...scp, "-q", file, `bob@${name}:copied`]);
    expect(await sha256OfFile(join(sshd.folder, "copied"))).toBe(await sha256OfFile(file));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
