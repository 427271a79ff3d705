/**
 * OpenSSH's server without root, on a host of the lab or on this one: in a user namespace of its own it is an ordinary
 * user's program, with one account, `bob`, and a key that opens it. Shared by tests and benches.
 */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { missing, unlessRequired } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import type { Place } from "./people.ts";

/** Why it can't run here, or undefined when it can. */
export const noSshd: string | undefined = unlessRequired(
  missing(["ssh", "scp", "ssh-keygen", "sshd", "unshare"], "packages openssh-server, openssh-client"),
);

/** An account of its own, and terminals that belong to it: there are no others' in its namespace. */
const script = (folder: string, port: number) => `
mount --bind ${folder}/passwd /etc/passwd
mount --bind ${folder}/group /etc/group
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount --bind /dev/pts/ptmx /dev/ptmx
exec unshare -U --map-user=1000 --map-group=1000 $(command -v sshd) -D -e -p ${port} -f ${folder}/config
`;

const config = (folder: string) => `
ListenAddress 127.0.0.1
HostKey ${folder}/host
AuthorizedKeysFile ${folder}/user.pub
StrictModes no
UsePAM no
PidFile none
PrintMotd no
MaxStartups 500
MaxSessions 500
Subsystem sftp internal-sftp
`;

export class Sshd implements AsyncDisposable {
  readonly port: number;
  /** The account's home, too. */
  readonly folder: string;
  readonly #program: Bun.Subprocess<"ignore", "pipe", "pipe">;

  /** Resolves once it listens on 127.0.0.1 of that place. */
  static async start(place: Place): Promise<Sshd> {
    const folder = mkdtempSync(join(tmpdir(), "sshd-"));
    chmodSync(folder, 0o755);
    for (const key of ["host", "user"])
      Bun.spawnSync(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(folder, key)]);
    const port = freePort();
    const files = {
      passwd: `bob:x:1000:1000::${folder}:/bin/sh\n`,
      group: "bob:x:1000:\n",
      config: config(folder),
      script: script(folder, port),
    };
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
    const sshd = new Sshd(place, folder, port);
    await sshd.#listening();
    return sshd;
  }

  private constructor(place: Place, folder: string, port: number) {
    this.folder = folder;
    this.port = port;
    const command = ["unshare", "-Urm", "sh", "-e", join(folder, "script")];
    this.#program = place.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  }

  /** What `ssh` and `scp` need to log in as `bob`, whatever is configured for who runs this. */
  get clientOptions(): string[] {
    const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
    return [
      ...["-F", "/dev/null", "-i", join(this.folder, "user")],
      ...options.flatMap((one) => ["-o", one]),
    ];
  }

  /** Its sessions are children of it. */
  get pid(): number {
    return this.#program.pid;
  }

  async #listening(): Promise<void> {
    let told = "";
    for await (const chunk of this.#program.stderr.pipeThrough(new TextDecoderStream())) {
      told += chunk;
      if (told.includes("Server listening")) return;
    }
    throw new Error(`sshd did not start: ${told}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#program.kill("SIGTERM");
    await this.#program.exited;
    rmSync(this.folder, { recursive: true, force: true });
  }
}
