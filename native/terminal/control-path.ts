/**
 * How `introducer ctl` and an introducer meet, and what they say to each other: a JSON object a line. Pure but for who we
 * are. For native/terminal/.
 *
 *   ctl → introducer   {"line":"list","width":80,"colors":true,"json":false}
 *   introducer → ctl   {"result":TEXT}, {"story":TEXT}, {"error":TEXT}, as many as there are; {"code":0}
 */
import { join } from "node:path";

/** What was typed. */
export interface ControlArguments {
  /** Where the introducer listens for commands. */
  path: string;
  /** Whether that was chosen by us, by the port. */
  isDefault: boolean;
  line: string;
  json: boolean;
}

/** What `introducer ctl` says: its terminal is where the answer is shown. */
export interface Said {
  line: string;
  /** Of its terminal; null where it has none. */
  width: number | null;
  colors: boolean;
  json: boolean;
}
export type Told = { result: string } | { story: string } | { error: string } | { code: number };

/** Where the introducer of that port listens for commands: undefined where there is no folder for such things. */
export function controlPath(port: number, env: NodeJS.ProcessEnv = process.env): string | undefined {
  const { RUNTIME_DIRECTORY: given, XDG_RUNTIME_DIR: own } = env;
  const isRoot = process.getuid?.() === 0;
  const folder = given?.split(":")[0] ?? (isRoot ? "/run/introducer" : own && join(own, "introducer"));
  return folder === undefined || folder === "" ? undefined : join(folder, `${port}.sock`);
}
