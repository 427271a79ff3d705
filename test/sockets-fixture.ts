/** Real clients and real targets on loopback, for whatever carries connections. */
import { createServer, connect, type AddressInfo, type Server, type Socket } from "node:net";

export const sha256 = (bytes: Uint8Array) => Bun.SHA256.hash(bytes, "hex");

/** A target that does `serve` with each connection. */
export async function target(
  serve: (socket: Socket) => void,
): Promise<AsyncDisposable & { port: number; open: Set<Socket> }> {
  const open = new Set<Socket>();
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => open.delete(socket));
    serve(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    open,
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** All that comes until the other side ends, and how it ended. */
export function readAll(socket: Socket): Promise<{ bytes: Buffer; error?: string }> {
  const chunks: Buffer[] = [];
  return new Promise((resolve) => {
    let error: string | undefined;
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.on("error", (problem: NodeJS.ErrnoException) => (error = problem.code));
    const over = () => resolve({ bytes: Buffer.concat(chunks), ...(error && { error }) });
    socket.on("end", over);
    socket.on("close", over);
  });
}

export const client = (port: number): Socket => connect({ host: "127.0.0.1", port, allowHalfOpen: true });

/** Below those that the kernel gives to connections (ip_local_port_range). */
const [firstPort, ports] = [12_000, 20_000];
let nextPort = Math.floor(Math.random() * ports);
/** An introducer at a port has the two after it, too, for its probes. */
const leastApart = 4;

/**
 * Ports to look at. Each comes once: what was given away may not be listened on yet, and must not be given to another test
 * meanwhile.
 */
export function nextPorts(count: number): number {
  if (nextPort + count > ports) nextPort = 0;
  const first = firstPort + nextPort;
  nextPort += Math.max(count, leastApart);
  return first;
}

/** A port that nobody listens on. */
export const freePort = (): number => freePorts(1);

/** The first of so many ports in a row that nobody listens on. */
export function freePorts(count: number): number {
  for (;;) {
    const first = nextPorts(count);
    try {
      for (let port = first; port < first + count; port++)
        Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } }).stop();
      return first;
    } catch {
      // taken
    }
  }
}

/** The real curl: its exit code, and what it has got. */
export async function curl(...args: string[]): Promise<{ code: number; text: string; error: string }> {
  const child = Bun.spawn(["curl", "-sS", "--max-time", "100", ...args], { stdout: "pipe", stderr: "pipe" });
  const [text, error] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, text, error };
}
