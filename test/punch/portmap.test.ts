import { expect, setDefaultTimeout, test } from "bun:test";
import {
  judgeGrant,
  lifetimeMs,
  PortMapping,
  type PortMappingOptions,
  renewalPauseMs,
  type PortMappingState,
} from "../../native/punch/portmap.ts";
import { formatEndpoint } from "../../protocol.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { FakeGateway, httpAnswer, type Behaviour } from "./gateway-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { longTest } from "../needing-fixture.ts";

setDefaultTimeout(testMs);

const internalPort = 40_000;
const externalAddress = "203.0.113.7";
const observed = formatEndpoint(externalAddress, 51_234);
const shortS = 8;

// --- pure ------------------------------------------------------------------------------------------------

const grant = { externalAddress, externalPort: 40_001, lifetimeS: 7200 };

test("a grant at the observed address is a candidate there", () => {
  expect(judgeGrant("pcp", grant, observed)).toEqual({
    is: "mapped",
    protocol: "pcp",
    ...grant,
    candidate: formatEndpoint(externalAddress, 40_001),
  });
});

test.each([
  ["another address", "203.0.113.8", observed],
  ["none", "", observed],
  ["a private one", "192.168.0.2", observed],
  ["a private one, seen from within", "100.64.0.2", formatEndpoint("100.64.0.2", 51_234)],
  ["no address at all", "router", observed],
])("a grant at %s is a double NAT", (_, address, seen) => {
  expect(judgeGrant("upnp", { ...grant, externalAddress: address }, seen)).toEqual({
    is: "double-nat",
    protocol: "upnp",
    externalAddress: address,
  });
});

test("renewed at half, then at half of what is left, never every moment, and no later than we asked for", () => {
  expect([7_200_000, 3_600_000, 9_000, 100, -5].map(renewalPauseMs)).toEqual([
    3_600_000, 1_800_000, 4_500, 4_000, 4_000,
  ]);
  // 2^32 - 1 s would be beyond what a timer can wait: it would fire at once.
  const granted = [600, 7200, 0, 0xffff_ffff].map((lifetimeS) => lifetimeMs({ ...grant, lifetimeS }, 7200));
  expect(granted).toEqual([600_000, 7_200_000, 7_200_000, 7_200_000]);
});

// --- with a router on loopback ---------------------------------------------------------------------------

type Datagram = Uint8Array<ArrayBuffer>;
const isPcp = (request: Datagram) => request[0] === 2;
const isDeletion = (request: Datagram) =>
  request.length > 2 && Buffer.from(request).readUInt32BE(isPcp(request) ? 4 : 8) === 0;

/** The answer of a router that has opened port 40001, for PCP or NAT-PMP. */
function granted(request: Datagram, address = externalAddress): Datagram {
  const bytes = address.split(".").map(Number);
  if (request.length === 2) return new Uint8Array([0, 0x80, 0, 0, 0, 0, 1, 44, ...bytes]);
  if (!isPcp(request))
    return new Uint8Array([0, 0x82, 0, 0, 0, 0, 1, 44, 0x9c, 0x40, 0x9c, 0x41, ...request.slice(8)]);
  const answer = new Uint8Array(request);
  answer.set([2, 0x81]);
  answer.set([0, 0, 1, 44, ...new Uint8Array(12)], 8);
  answer.set([0x9c, 0x41], 42);
  answer.set(bytes, 56);
  return answer;
}

/** NOT_AUTHORIZED in either protocol. */
function refused(request: Datagram): Datagram {
  const answer = granted(request);
  answer[3] = 2;
  return answer;
}

const service = "urn:schemas-upnp-org:service:WANIPConnection:1";
const description = `<service><serviceType>${service}</serviceType><controlURL>/control</controlURL></service>`;
/** UPnP that grants what is asked. */
const upnp = (location: () => string): Behaviour => ({
  search: () => [
    `HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: ${location()}\r\n\r\n`,
  ],
  http: ({ action }) => [
    httpAnswer(action ? `<NewExternalIPAddress>${externalAddress}</NewExternalIPAddress>` : description),
  ],
});

/** A mapping and every state it has been in. */
class Watched {
  readonly states: PortMappingState[] = [];
  readonly mapping: PortMapping;

  constructor({ gateway }: FakeGateway, lifetimeS = 7200, askAgainMs?: PortMappingOptions["askAgainMs"]) {
    const onChange = (state: PortMappingState) => void this.states.push(state);
    const options = { internalPort, observed, lifetimeS, gateway, onChange };
    this.mapping = new PortMapping({ ...options, ...(askAgainMs && { askAgainMs }) });
  }

  async next(): Promise<PortMappingState> {
    const count = this.states.length;
    await until("there is another state", () => this.states.length > count);
    return this.mapping.state;
  }
}

const protocolOf = (state: PortMappingState) => ("protocol" in state ? state.protocol : state.is);

test.concurrent("PCP: mapped, deleted at the end", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: (request) => [granted(request)] });
  const { mapping, states } = new Watched(router);
  await until("mapped", () => mapping.state.is === "mapped");
  expect(states).toEqual([judgeGrant("pcp", grant, observed)]);
  await mapping.close();
  await mapping.close();
  expect(mapping.state).toEqual({ is: "closed" });
  expect(router.datagrams.map(isDeletion)).toEqual([false, true]);
  expect(states).toHaveLength(1);
});

test.concurrent("NAT-PMP, where PCP is not spoken", async () => {
  await using _ = noSocketLeft();
  const unsupported = new Uint8Array([0, 0x81, 0, 1, 0, 0, 0, 5]);
  using router = await FakeGateway.open({
    mapping: (request) => [isPcp(request) ? unsupported : granted(request)],
  });
  const watched = new Watched(router);
  expect(await watched.next()).toEqual(judgeGrant("nat-pmp", grant, observed));
  await watched.mapping.close();
});

test.concurrent("NAT-PMP, where PCP is not heard", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({
    mapping: (request) => (isPcp(request) ? [] : [granted(request)]),
  });
  const watched = new Watched(router);
  expect(protocolOf(await watched.next())).toBe("nat-pmp");
  await watched.mapping.close();
  // PCP's question may be answered yet: it is taken back.
  await until("taken back", () => router.datagrams.some((one) => isPcp(one) && isDeletion(one)));
});

test.concurrent(
  "UPnP, while PCP is not heard; a late answer of PCP changes nothing, and is taken back",
  async () => {
    await using _ = noSocketLeft();
    using router: FakeGateway = await FakeGateway.open({ mapping: () => [], ...upnp(() => router.location) });
    const watched = new Watched(router);
    expect(protocolOf(await watched.next())).toBe("upnp");
    const late = router.datagrams[0]!;
    router.say(granted(late));
    await watched.mapping.close();
    await until("taken back", () => router.datagrams.some(isDeletion));
    expect(watched.states).toHaveLength(1);
    expect(router.requests.at(-1)?.action).toBe("DeletePortMapping");
  },
);

test.concurrent("a router that answers PCP after three seconds", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [] });
  const askedAt = performance.now();
  const watched = new Watched(router);
  await until("three seconds", () => performance.now() > askedAt + 3_000);
  const [first] = router.datagrams.filter(isPcp);
  const from = router.sources[0]!;
  router.say(granted(first!), from);
  expect(protocolOf(await watched.next())).toBe("pcp");
  await watched.mapping.close();
});

test.concurrent(
  "no router that answers: so it is said, once, and no socket is left",
  async () => {
    await using _ = noSocketLeft();
    using router = await FakeGateway.open({ mapping: () => [] });
    const watched = new Watched(router);
    expect(await watched.next()).toEqual({
      is: "unavailable",
      reason: "PCP: no answer; NAT-PMP: no answer; UPnP: no answer",
    });
    await watched.mapping.close();
  },
  testMs,
);

test.concurrent("a router that refuses, by every protocol", async () => {
  await using _ = noSocketLeft();
  using router: FakeGateway = await FakeGateway.open({
    mapping: (request) => [refused(request)],
    ...upnp(() => router.location),
    http: () => [httpAnswer("", "404 Not Found")],
  });
  const watched = new Watched(router);
  expect(await watched.next()).toEqual({
    is: "unavailable",
    reason: "PCP: NOT_AUTHORIZED; NAT-PMP: not authorized; UPnP: its description: HTTP status 404",
  });
  await watched.mapping.close();
  expect(router.datagrams.filter(isDeletion)).toEqual([]);
});

test.concurrent("a double NAT: no candidate, and nothing is left open", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: (request) => [granted(request, "192.168.0.2")] });
  const watched = new Watched(router);
  expect(await watched.next()).toEqual({ is: "double-nat", protocol: "pcp", externalAddress: "192.168.0.2" });
  await until("deleted", () => router.datagrams.some(isDeletion));
  await watched.mapping.close();
});

test.concurrent("a router that grants a second: it is not asked every moment", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({
    mapping: (request) => [granted(request).fill(0, 4, 7).fill(1, 7, 8)],
  });
  const watched = new Watched(router);
  expect(await watched.next()).toEqual({ is: "unavailable", reason: "PCP: it grants 1 s only" });
  await watched.mapping.close();
});

test.concurrent(
  "a mapping that is doubted is asked for at once, and then not every moment",
  async () => {
    await using _ = noSocketLeft();
    using router = await FakeGateway.open({ mapping: (request) => [granted(request)] });
    const watched = new Watched(router);
    await watched.next();
    /** Each time that it is asked, it is from another port. */
    const askings = () => new Set(router.sources.map(({ port }) => port)).size;
    const doubtedAt = performance.now();
    watched.mapping.doubt();
    await until("asked again", () => askings() === 2);
    for (let count = 0; count < 500; count++) {
      watched.mapping.doubt();
      await Bun.sleep(1);
    }
    // RFC 6887 §11.2.1: at most one in 4 s.
    expect(askings()).toBeLessThanOrEqual(2 + (performance.now() - doubtedAt) / 4_000);
    expect(router.datagrams.some(isDeletion)).toBe(false);
    expect(watched.states).toHaveLength(1);
    await watched.mapping.close();
  },
  testMs,
);

test.concurrent(
  "a router that refused is asked again, once it is doubted; nobody asks it by itself",
  async () => {
    await using _ = noSocketLeft();
    let isStarting = true;
    using router: FakeGateway = await FakeGateway.open({
      ...upnp(() => router.location),
      http: () => [httpAnswer("", "404 Not Found")],
      mapping: (request) => [isStarting ? refused(request) : granted(request)],
    });
    const watched = new Watched(router, shortS, { first: 200, most: 400 });
    expect(protocolOf(await watched.next())).toBe("unavailable");
    const asked = router.datagrams.length;
    await Bun.sleep(600); // several times as long as it would have to wait
    expect(router.datagrams.length).toBe(asked);
    isStarting = false;
    watched.mapping.doubt();
    expect(protocolOf(await watched.next())).toBe("pcp");
    await watched.mapping.close();
  },
  testMs,
);

test.concurrent(
  "what an earlier program has left for ever is deleted; a router that is slow at it holds up nothing",
  async () => {
    await using _ = noSocketLeft();
    const entry = { ExternalPort: 41_000, Protocol: "TCP", InternalPort: 1, InternalClient: "127.0.0.1" };
    const left = { ...entry, PortMappingDescription: "tcp-hole-punching", LeaseDuration: 0 };
    const fields = Object.entries(left).map(([name, text]) => `<New${name}>${text}</New${name}>`);
    const fault = (code: number) => httpAnswer(`<errorCode>${code}</errorCode>`, "500 Error");
    using router: FakeGateway = await FakeGateway.open({
      ...upnp(() => router.location),
      isOpen: true, // it ends no connection
      http: ({ action, body }) => {
        if (action === "AddPortMapping" && body.includes("<NewLeaseDuration>7200<")) return [fault(725)];
        const index = /<NewPortMappingIndex>(\d+)</.exec(body)?.[1];
        if (index === "0") return [httpAnswer(fields.join(""))];
        if (index === "1") return [fault(713)];
        if (action === "DeletePortMapping" && body.includes("<NewExternalPort>41000<")) return [];
        const address = `<NewExternalIPAddress>${externalAddress}</NewExternalIPAddress>`;
        return [httpAnswer(action ? address : description)];
      },
    });
    const watched = new Watched(router);
    expect(await watched.next()).toMatchObject({ is: "mapped", protocol: "upnp", lifetimeS: 0 });
    const deletions = () => router.requests.filter(({ action }) => action === "DeletePortMapping");
    await until("deleted", () => deletions().length === 1);
    await watched.mapping.close();
    const ports = deletions().map(({ body }) => /<NewExternalPort>(\d+)</.exec(body)?.[1]);
    expect(ports).toEqual(["41000", "40000"]);
  },
  testMs,
);

test.concurrent("closed before anything was answered: what was asked for is taken back", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [] });
  const watched = new Watched(router);
  await until("asked", () => router.datagrams.length > 0);
  const closed = watched.mapping.close();
  await watched.mapping.answered; // nobody waits for it any more
  await closed;
  await until("taken back", () => router.datagrams.some(isDeletion));
  expect(watched.states).toEqual([]);
});

test.concurrent("closed at once: nothing is asked any more, no socket is left", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [] });
  await new Watched(router).mapping.close();
});

test.concurrent("closed while the router has fallen silent: the end comes all the same", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({
    mapping: (request) => (isDeletion(request) ? [] : [granted(request)]),
  });
  const watched = new Watched(router);
  await watched.next();
  await watched.mapping.close();
  expect(router.datagrams.filter(isDeletion).length).toBeGreaterThan(1);
});

// Last, for where it is skipped it would part the others, which wait together.
longTest.concurrent(
  "renewed at half; another port then is told; refused until it ends, it is lost",
  async () => {
    await using _ = noSocketLeft();
    let count = 0;
    using router: FakeGateway = await FakeGateway.open({
      ...upnp(() => router.location),
      http: () => [httpAnswer("", "404 Not Found")],
      mapping: (request) => {
        if (++count === 2) return [granted(request).fill(0x42, 43, 44)];
        return [count === 1 || isDeletion(request) ? granted(request) : refused(request)];
      },
    });
    const watched = new Watched(router, shortS);
    const first = judgeGrant("pcp", { ...grant, lifetimeS: shortS }, observed);
    expect(await watched.next()).toEqual(first);
    expect(await watched.next()).toEqual(
      judgeGrant("pcp", { ...grant, externalPort: 0x9c42, lifetimeS: shortS }, observed),
    );
    await watched.next();
    if (watched.mapping.state.is === "asking") await watched.next();
    expect(watched.states.slice(2).map(({ is }) => is)).toEqual(["asking", "unavailable"]);
    await watched.mapping.close();
  },
  testMs,
);
