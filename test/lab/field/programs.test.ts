/** Other people's programs by a forward, through two NATs, as they are used: long, cut short, and while a NAT is rebooted. */
import { expect } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { until } from "../../native-fixture.ts";
import { missing, unlessRequired } from "../../needing-fixture.ts";
import { freePort } from "../../sockets-fixture.ts";
import type { Host, Nat } from "../lab.ts";
import { noSshd, Sshd } from "../sshd.ts";
import { longLabScenario } from "./field-fixture.ts";
import { eventually, randomFile, seconds, sha256OfFile, Village } from "./village-fixture.ts";

const largeBytes = 300_000_000;
const longMs = 240_000;
const freeAddress = "203.0.113.220";
const ssh = longLabScenario(noSshd);
const needing = (programs: string[], packages: string) =>
  longLabScenario(unlessRequired(missing(programs, packages)));

/** All that reboots do: its mappings are forgotten, and it has another address. */
async function reboot(host: Host): Promise<void> {
  const nat = host.behind as Nat;
  await nat.flush();
  await nat.changeAddress(freeAddress);
}

ssh(
  "300 MB by scp both ways at once, with a new key every 32 MB",
  async () => {
    await using village = await Village.create();
    const { hosts, folder } = village;
    await using sshd = await Sshd.start(hosts.bob);
    await village.link([sshd.port]);
    const options = [...sshd.clientOptions, "-o", "RekeyLimit=32M", "-P", String(sshd.port), "-q"];
    const [up, down] = [join(folder, "up"), join(sshd.folder, "down")];
    await Promise.all([up, down].map((path) => randomFile(path, largeBytes)));
    const startedAt = performance.now();
    await Promise.all([
      hosts.alice.run(["scp", ...options, up, "bob@127.0.0.1:up"]),
      hosts.alice.run(["scp", ...options, "bob@127.0.0.1:down", join(folder, "down")]),
    ]);
    const took = seconds(startedAt);
    expect(await sha256OfFile(join(sshd.folder, "up"))).toBe(await sha256OfFile(up));
    expect(await sha256OfFile(join(folder, "down"))).toBe(await sha256OfFile(down));
    return `300 MB each way, SHA-256 the same, ${took}`;
  },
  longMs,
);

ssh("rsync of 500 files, cut by a NAT's reboot, and again with a few changed", async () => {
  const absent = missing(["rsync"], "package rsync");
  if (absent !== undefined) return `not tried: ${absent}`;
  await using village = await Village.create();
  const { hosts, folder } = village;
  await using sshd = await Sshd.start(hosts.bob);
  await village.link([sshd.port]);
  const tree = join(folder, "tree");
  mkdirSync(tree);
  for (let n = 0; n < 500; n++) await randomFile(join(tree, `${n}`), 50_000);
  const shell = ["ssh", ...sshd.clientOptions, "-p", String(sshd.port)].join(" ");
  const copy = () =>
    hosts.alice.run(["rsync", "-a", "--stats", "-e", shell, `${tree}/`, "bob@127.0.0.1:tree"]);
  const first = copy();
  await Bun.sleep(500);
  await reboot(hosts.alice);
  await first;
  for (let n = 0; n < 500; n += 100) writeFileSync(join(tree, `${n}`), "changed");
  const transferred = /files transferred: (\d+)/.exec(await copy())?.[1];
  expect(transferred).toBe("5");
  const compared = await hosts.alice.run(["diff", "-r", tree, join(sshd.folder, "tree")]);
  expect(compared).toBe("");
  return "25 MB through the reboot; then 5 files; the trees are the same";
});

ssh("git push, and clone while a NAT is rebooted", async () => {
  await using village = await Village.create();
  const { hosts, folder } = village;
  await using sshd = await Sshd.start(hosts.bob);
  await village.link([sshd.port]);
  const shell = ["ssh", ...sshd.clientOptions, "-p", String(sshd.port)].join(" ");
  const us = ["-c", "user.name=a", "-c", "user.email=a@b"];
  const git = (...args: string[]) =>
    hosts.alice.run(["env", `GIT_SSH_COMMAND=${shell}`, "git", ...us, ...args]);
  const [tree, bare] = [join(folder, "tree"), join(sshd.folder, "bare.git")];
  await git("init", "-q", "--bare", bare);
  await git("init", "-q", tree);
  for (let n = 0; n < 200; n++) await randomFile(join(tree, `${n}`), 100_000);
  await git("-C", tree, "add", ".");
  await git("-C", tree, "commit", "-q", "-m", "all");
  const url = `ssh://bob@127.0.0.1${bare}`;
  await git("-C", tree, "push", "-q", url, "HEAD:refs/heads/main");
  const cloned = join(folder, "cloned");
  const cloning = git("clone", "-q", "-b", "main", url, cloned);
  await Bun.sleep(300);
  await reboot(hosts.alice);
  await cloning;
  await git("-C", cloned, "fsck", "--strict");
  const [ours, theirs] = await Promise.all([tree, cloned].map((one) => git("-C", one, "rev-parse", "HEAD")));
  expect(theirs).toBe(ours!);
  return "20 MB pushed, cloned through the reboot, fsck clean";
});

needing(["redis-server", "redis-cli"], "package redis-server")(
  "Redis: 20,000 commands in one go, and a subscription through a NAT's reboot",
  async () => {
    await using village = await Village.create();
    const { hosts } = village;
    const port = freePort();
    const options = ["--port", String(port), "--save", "", "--bind", "127.0.0.1", "--dir", village.folder];
    hosts.bob.spawn(["redis-server", ...options], { stdout: "ignore" });
    const { alice } = await village.link([port]);
    const cli = (...args: string[]) => hosts.alice.run(["redis-cli", "-p", String(port), ...args]);
    await eventually("it answers", async () => (await cli("PING").catch(() => "")) === "PONG\n");
    const commands = Array.from({ length: 20_000 }, (_, n) => `SET key:${n} ${"v".repeat(100)}${n}\n`);
    const file = join(village.folder, "commands");
    writeFileSync(file, commands.join(""));
    await hosts.alice.run(["sh", "-c", `redis-cli -p ${port} --pipe < ${file}`]);
    expect(await cli("DBSIZE")).toBe("20000\n");
    const listening = hosts.alice.spawn(["redis-cli", "-p", String(port), "SUBSCRIBE", "news"], {
      stdout: "pipe",
      stderr: "ignore",
    });
    let heard = "";
    void (async () => {
      for await (const text of listening.stdout.pipeThrough(new TextDecoderStream())) heard += text;
    })();
    await until("it is subscribed", () => heard.includes("subscribe"));
    await reboot(hosts.alice);
    await eventually("somebody listens", async () => (await cli("PUBLISH", "news", "hello")) === "1\n");
    await until("it is heard", () => heard.includes("hello"), 20_000);
    expect(alice.all("unlinked")).toEqual([]);
    return "all stored; what was published after the reboot was heard on the old connection";
  },
);

needing(["initdb", "postgres", "psql"], "package postgresql")(
  "Postgres: COPY of 10 MB, NOTIFY through a NAT's reboot, and a query that is cancelled",
  async () => {
    await using village = await Village.create();
    const { hosts, folder } = village;
    const port = freePort();
    const cluster = join(folder, "cluster");
    const user = ["unshare", "-U", "--map-user=1000", "--map-group=1000"];
    await hosts.bob.run([...user, "initdb", "-D", cluster, "-U", "bob", "-A", "trust", "--no-sync"]);
    const options = ["-p", String(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"];
    const server = hosts.bob.spawn([...user, "postgres", "-D", cluster, ...options], { stderr: "ignore" });
    await village.link([port]);
    const base = ["psql", "-h", "127.0.0.1", "-p", String(port), "-U", "bob", "-d", "postgres", "-qAtX"];
    const sql = (text: string) => hosts.alice.run([...base, "-c", text]);
    await eventually("it answers", async () => (await sql("SELECT 1").catch(() => "")) === "1\n");
    const rows = Array.from({ length: 100_000 }, (_, n) => `${n}\t${"x".repeat(100)}\n`).join("");
    writeFileSync(join(folder, "rows"), rows);
    await sql("CREATE TABLE t (n int, x text)");
    const [psql, file] = [base.join(" "), join(folder, "rows")];
    await hosts.alice.run(["sh", "-c", `${psql} -c "COPY t FROM STDIN" < ${file}`]);
    expect(await hosts.alice.run(["sh", "-c", `${psql} -c "COPY t TO STDOUT" | cmp - ${file}`])).toBe("");
    const waiting = hosts.alice.spawn(base, { stdin: "pipe", stdout: "pipe" });
    const types = (line: string) => (waiting.stdin.write(`${line}\n`), waiting.stdin.flush());
    let heard = "";
    void (async () => {
      for await (const text of waiting.stdout.pipeThrough(new TextDecoderStream())) heard += text;
    })();
    await types("LISTEN news; SELECT 'is ' || 'listening';");
    await until("it listens", () => heard.includes("is listening"));
    await reboot(hosts.alice);
    await sql("NOTIFY news, 'hello'");
    await types("SELECT 1;");
    await until("it is heard", () => heard.includes('"hello"'), 30_000);
    const slow = hosts.alice.spawn([...base, "-c", "SELECT pg_sleep(60)"], { stderr: "pipe" });
    const running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_' || 'sleep(60)%'";
    await eventually("it runs", async () => (await sql(running)) === "1\n");
    slow.kill("SIGINT"); // psql asks by a connection of its own for it to be cancelled
    expect(await slow.stderr.text()).toContain("canceling statement due to user request");
    waiting.kill();
    server.kill("SIGINT");
    return "COPY compared, NOTIFY heard on the old connection, cancelled";
  },
);

/** On bob's host: 20 MB, with ranges. It tells how many requests are under way. */
const serving = (port: number, place: string) => `
  const bytes = new Uint8Array(20_000_000).map((_, n) => n * 7 + (n >> 8));
  await Bun.write("${place}", bytes);
  const server = Bun.serve({ port: ${port}, hostname: "127.0.0.1", routes: {
    "/pending": () => new Response(String(server.pendingRequests - 1)),
    "/file": (request) => {
      const [, from, to] = /bytes=(\\d+)-(\\d*)/.exec(request.headers.get("range") ?? "") ?? [];
      const file = Bun.file("${place}");
      if (from === undefined) return new Response(file);
      return new Response(file.slice(Number(from), to ? Number(to) + 1 : bytes.length), { status: 206 });
    } } });
  console.log("serving");`;

needing(["curl"], "package curl")(
  "HTTP: ranges, 40 downloads that are given up, and then a whole one",
  async () => {
    await using village = await Village.create();
    const { hosts, folder } = village;
    const [port, place] = [freePort(), join(folder, "file")];
    const served = hosts.bob.spawn([process.execPath, "-e", serving(port, place)], { stdout: "pipe" });
    await served.stdout.getReader().read();
    await village.link([port]);
    const url = `http://127.0.0.1:${port}`;
    const curl = (...args: string[]) => hosts.alice.run(["curl", "-s", "-S", ...args]);
    const got = join(folder, "got");
    await curl("-r", "0-9999999", `${url}/file`, "-o", got);
    await curl("-C", "-", `${url}/file`, "-o", got); // it goes on at 10,000,000
    expect(await sha256OfFile(got)).toBe(await sha256OfFile(place));
    const early = Array.from({ length: 40 }, () =>
      hosts.alice.run(["sh", "-c", `curl -s ${url}/file | head -c 100000 | wc -c`]),
    );
    expect(new Set(await Promise.all(early))).toEqual(new Set(["100000\n"]));
    await eventually("none is under way", async () => (await curl(`${url}/pending`)) === "0");
    await curl(`${url}/file`, "-o", got);
    expect(await sha256OfFile(got)).toBe(await sha256OfFile(place));
    served.kill();
    return "gone on with, given up by the server too, and whole";
  },
);
