/** Sockets at paths as either end of a forward between real programs, with real curl. */
import { afterAll, expect, setDefaultTimeout } from "bun:test";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Driven, homeOf, met, spawn, startIntroducer } from "../driven-fixture.ts";
import { missing, onWindows, testNeeding, unlessRequired } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { newRoomWords } from "../../native/secure/words.ts";
import { until } from "../native-fixture.ts";
import { curl, freePort } from "../sockets-fixture.ts";

setDefaultTimeout(testMs);
const folder = fs.mkdtempSync(join(tmpdir(), "unix-"));
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));
const curlTest = testNeeding(onWindows, unlessRequired(missing(["curl"], "Debian: curl")));
const at = (name: string) => join(folder, name);

/** Says the name of the socket, and what was sent. */
const serve = (name: string) =>
  Bun.serve({
    unix: at(name),
    fetch: async (request) => new Response(`${name}: ${request.method} ${(await request.bytes()).length}`),
  });

curlTest("a path leads to a path, a port to a path, a path to a port; and nothing is left", async () => {
  const [docker, other] = [serve("docker.sock"), serve("other.sock")];
  const web = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("web") });
  await using house = startIntroducer();
  const words = newRoomWords();
  const port = freePort();
  const forwards = [
    `${at("d.sock")}:bob:${at("docker.sock")}`,
    `${port}:bob:${at("docker.sock")}`,
    `${at("web.sock")}:bob:${web.port}`,
    `${at("other")}:bob:${at("other.sock")}`,
    `${at("gone")}:bob:${at("nothing.sock")}`,
  ];
  const options = forwards.flatMap((spec) => ["-L", spec]);
  await using alice = new Driven(house.port, "alice", "--room", words, ...options);
  const allowed = [at("docker.sock"), at("nothing.sock"), String(web.port)];
  const rules = allowed.flatMap((rule) => ["--allow", rule]);
  await using bob = new Driven(house.port, "bob", "--room", words, ...rules);
  await met(alice, bob);
  await alice.next("linked");
  expect(await alice.next("forwarding")).toMatchObject({ listen: at("d.sock"), target: at("docker.sock") });
  expect((fs.lstatSync(at("d.sock")).mode & 0o7777).toString(8)).toBe("600");

  const big = at("big");
  fs.writeFileSync(big, Buffer.alloc(3_000_000));
  const asked = await Promise.all([
    curl("--unix-socket", at("d.sock"), "--data-binary", `@${big}`, "http://docker/"),
    curl(`http://127.0.0.1:${port}/`),
    curl("--unix-socket", at("web.sock"), "http://x/"),
  ]);
  expect(asked.map(({ text }) => text)).toEqual(["docker.sock: POST 3000000", "docker.sock: GET 0", "web"]);

  // 7, 52, 55, 56: it was reset before curl had looked at it, nothing came, it could not be asked, or it was reset. Which of
  // them is a race.
  expect((await curl("--unix-socket", at("other"), "http://x/")).code).toBeOneOf([7, 52, 55, 56]);
  expect(await alice.next("forward-refused")).toMatchObject({ target: at("other.sock"), why: "not-allowed" });
  expect((await curl("--unix-socket", at("gone"), "http://x/")).code).toBeOneOf([7, 52, 55, 56]);
  expect((await alice.next("forward-refused")).reason).toBe(
    `${at("nothing.sock")}: there is no such socket (ENOENT)`,
  );

  const home = homeOf("carol");
  const piping = ["--name", "carol", "--room", words, "-q", "--pipe", `bob:${at("docker.sock")}`];
  await using piped = spawn([`127.0.0.1:${house.port}`, ...piping], { XDG_STATE_HOME: home }, home);
  piped.stdin.write("GET / HTTP/1.0\r\n\r\n");
  piped.stdin.end();
  expect(await piped.stdout.text()).toEndWith("docker.sock: GET 0");
  expect(await piped.exited).toBe(0);

  alice.type(`unforward ${at("other")}`, `forward ${at("big")}:bob:80`, `forward ${at("none/x")}:bob:80`);
  expect((await alice.next("error")).message).toBe(
    `can't listen on ${at("big")}: something is there already; choose another path, or remove it`,
  );
  expect((await alice.next("error")).message).toBe(
    `can't listen on ${at("none/x")}: there is no such folder`,
  );
  expect(fs.existsSync(at("other"))).toBe(false);

  // Killed, it leaves its sockets; the next one takes their place, and removes them.
  alice.signal("SIGKILL");
  await alice.exited();
  expect(fs.lstatSync(at("d.sock")).isSocket()).toBe(true);
  await using again = new Driven(house.port, "alice", "--room", words, "-L", forwards[0]!);
  await again.next("linked");
  expect((await curl("--unix-socket", at("d.sock"), "http://docker/")).text).toBe("docker.sock: GET 0");
  again.signal("SIGTERM");
  expect(await again.exited()).toBe(0);
  await until("it is removed", () => !fs.existsSync(at("d.sock")));
  await Promise.all([docker, other, web].map((server) => server.stop(true)));
});
