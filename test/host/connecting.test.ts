/** Happy Eyeballs: which address wins, when the next is tried, and that nothing is left of the others. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  beginConnecting,
  type Connected,
  connectToFirst,
  interleaved,
  resolve,
  takeBegun,
  Unreachable,
} from "../../native/host/connecting.ts";
import { linuxTest } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { noSocketLeft, refusing, unanswering, until } from "../native-fixture.ts";
import { formatEndpoint, type Endpoint } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const at = (text: string) => text as Endpoint;

/** A server that counts its visitors. */
function server(hostname: "127.0.0.1" | "::1" = "127.0.0.1", port = 0) {
  const visits: Bun.Socket[] = [];
  const listener = Bun.listen({
    hostname,
    port,
    socket: { open: (one) => void visits.push(one), data() {} },
  });
  const dispose = () => listener.stop(true);
  const endpoint = formatEndpoint(hostname, listener.port);
  return { visits, endpoint, port: listener.port, [Symbol.dispose]: dispose };
}

async function timed(remotes: Endpoint[]): Promise<Connected & { ms: number }> {
  const startedAt = performance.now();
  const connected = await connectToFirst(remotes);
  connected.socket.close();
  return { ...connected, ms: performance.now() - startedAt };
}

test("the families take turns, and within each the order stays", () => {
  const remotes = ["[2001:db8::1]:7", "[2001:db8::2]:7", "[2001:db8::3]:7", "10.0.0.1:7", "10.0.0.2:7"].map(
    at,
  );
  expect(interleaved(remotes)).toEqual(
    ["[2001:db8::1]:7", "10.0.0.1:7", "[2001:db8::2]:7", "10.0.0.2:7", "[2001:db8::3]:7"].map(at),
  );
  expect(interleaved(remotes.toReversed())[1]).toBe(at("[2001:db8::3]:7"));
  expect(interleaved([])).toEqual([]);
});

test("an address that accepts is the only one that is called", async () => {
  await using _ = noSocketLeft();
  using first = server();
  using second = server("::1");
  const { remote, port } = await timed([first.endpoint, second.endpoint]);
  expect(remote).toBe(first.endpoint);
  expect(port).toBeGreaterThan(0);
  expect(second.visits).toHaveLength(0);
});

linuxTest("a local port that was given is used, again at once, and with further sockets on it", async () => {
  await using _ = noSocketLeft();
  using first = server();
  using second = server();
  const localPort = freePort();
  const connected = await connectToFirst([first.endpoint], localPort);
  const other = await connectToFirst([second.endpoint], localPort);
  expect([connected.port, other.port]).toEqual([localPort, localPort]);
  connected.socket.close();
  other.socket.close();
  const again = await connectToFirst([first.endpoint], localPort);
  expect(again.port).toBe(localPort);
  // The same way is taken as long as that one is open.
  const twice = await connectToFirst([first.endpoint], localPort).catch(String);
  again.socket.close();
  using others = server();
  const taken = await connectToFirst([first.endpoint], others.port).catch(String);
  const told = (port: number) =>
    `another program of this host uses port ${port} (--port): end that one, or give another`;
  expect([twice, taken]).toEqual([localPort, others.port].map((port) => expect.stringContaining(told(port))));
});

linuxTest("a family that is blackholed costs a quarter of a second, and not its whole time", async () => {
  await using _ = noSocketLeft();
  using hole = unanswering();
  using open = server("::1");
  const { remote, ms } = await timed([hole.endpoint, open.endpoint]);
  expect(remote).toBe(open.endpoint);
  expect(ms).toBeGreaterThanOrEqual(250);
  expect(ms).toBeLessThan(4_000);
});

test("addresses that refuse are not waited for", async () => {
  await using _ = noSocketLeft();
  using open = server();
  const refused = Array.from({ length: 15 }, (_, index) => refusing(index % 2 === 0 ? 4 : 6));
  const { remote, ms } = await timed([...refused, open.endpoint]);
  expect(remote).toBe(open.endpoint);
  expect(ms).toBeLessThan(15 * 250);
});

test("if none accepts, each is named with its reason", async () => {
  await using _ = noSocketLeft();
  const remotes = [refusing(6), refusing(4)];
  const failed = await connectToFirst(remotes).catch((error: unknown) => error);
  expect(failed).toBeInstanceOf(Unreachable);
  expect((failed as Unreachable).failures).toEqual(
    remotes.map((remote) => ({ remote, code: "ECONNREFUSED" })),
  );
});

test("a name has the addresses that the system knows; one that is none says so", async () => {
  expect(await resolve("127.0.0.1", 7)).toEqual([at("127.0.0.1:7")]);
  expect(await resolve("localhost", 7)).toContain(at("127.0.0.1:7"));
  await expect(resolve("no.such.host.invalid", 7)).rejects.toThrow(
    "there is no host called no.such.host.invalid",
  );
});

test("what was begun early is what is taken, once", async () => {
  await using _ = noSocketLeft();
  using open = server();
  beginConnecting({ host: "127.0.0.1", port: open.port });
  const { socket, remote } = (await takeBegun({ host: "127.0.0.1", port: open.port }))!;
  expect(remote).toBe(open.endpoint);
  await until("it has been accepted", () => open.visits.length > 0);
  socket.close();
  expect(open.visits).toHaveLength(1);
  expect(takeBegun({ host: "127.0.0.1", port: open.port })).toBeUndefined();
});

test("what was begun for nothing is closed, and harms nobody where it fails", async () => {
  await using _ = noSocketLeft();
  using open = server();
  beginConnecting({ host: "127.0.0.1", port: open.port });
  expect(takeBegun({ host: "127.0.0.2", port: open.port })).toBeUndefined();
  await until("it has been closed", () => open.visits.length === 1 && open.visits[0]!.readyState <= 0);
  beginConnecting({ host: "127.0.0.1", port: open.port }); // and nobody asks
  await until("that is closed, too", () => open.visits.length === 2 && open.visits[1]!.readyState <= 0);
  beginConnecting({ host: "no.such.host.invalid", port: 7 });
  expect(takeBegun({ host: "127.0.0.1", port: 7 })).toBeUndefined();
  beginConnecting(undefined);
});
