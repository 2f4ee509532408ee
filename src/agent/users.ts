// Users and groups of the guest, read from its own files, which may be missing or nonsense.
import { readFileSync } from 'node:fs';
import type { User } from './platform/platform.ts';
import { Refusal } from './refusal.ts';

export interface Account extends User {
  name: string;
  home: string;
}

interface PasswdLine {
  name: string;
  uid: number;
  gid: number;
  home: string;
}

interface GroupLine {
  name: string;
  gid: number;
  members: string[];
}

const fileBytesMax = 4 * 1024 * 1024;
const idMax = 0xffff_fffe;

/** One reading of /etc/passwd and /etc/group, each when first needed. Make a new one for each request, since a guest may change them. */
export class Accounts {
  #passwd: PasswdLine[] | undefined;
  #groups: GroupLine[] | undefined;
  readonly #userNames = new Map<number, string>();
  readonly #groupNames = new Map<number, string>();
  readonly #read: (path: string) => string;

  /** `read`: where the files are those of another root folder. It may throw for what is missing. */
  constructor(read: (path: string) => string = (path) => readFileSync(path, 'utf8')) {
    this.#read = read;
  }

  /** `name`, `uid`, `name:group` or `uid:gid`. Throws Refusal('invalid') for one that does not exist. */
  resolve(spec: string): Account {
    const [user = '', group, ...more] = spec.split(':');
    if (user === '' || group === '' || more.length > 0) {
      throw new Refusal('invalid', `user ${JSON.stringify(spec)}: write name, uid, name:group or uid:gid`);
    }
    const line = this.#user(user);
    const uid = line?.uid ?? toId(user);
    if (uid === undefined)
      throw new Refusal('invalid', `user ${JSON.stringify(user)}: not in /etc/passwd of the sandbox`);
    const gid = group === undefined ? (line?.gid ?? uid) : this.groupId(group);
    const own = group === undefined && line !== undefined ? this.#groupsOf(line.name) : [];
    return {
      uid,
      gid,
      groups: [...new Set([gid, ...own])],
      name: line?.name ?? user,
      home: homeOf(line),
    };
  }

  /** The account behind the agent's own ids. */
  own(uid: number, gid: number): Account {
    const line = this.#passwdLines().find((it) => it.uid === uid);
    return { uid, gid, groups: [], name: line?.name ?? String(uid), home: homeOf(line) };
  }

  home(user: string): string | undefined {
    const line = this.#user(user);
    return line && homeOf(line);
  }

  userId(user: string): number {
    const uid = this.#user(user)?.uid ?? toId(user);
    if (uid === undefined)
      throw new Refusal('invalid', `owner ${JSON.stringify(user)}: not in /etc/passwd of the sandbox`);
    return uid;
  }

  groupId(group: string): number {
    const gid = this.#groupLines().find((it) => it.name === group)?.gid ?? toId(group);
    if (gid === undefined)
      throw new Refusal('invalid', `group ${JSON.stringify(group)}: not in /etc/group of the sandbox`);
    return gid;
  }

  /** The id itself where it has no name. */
  userName(uid: number): string {
    let name = this.#userNames.get(uid);
    if (name === undefined) {
      name = this.#passwdLines().find((it) => it.uid === uid)?.name ?? String(uid);
      this.#userNames.set(uid, name);
    }
    return name;
  }

  groupName(gid: number): string {
    let name = this.#groupNames.get(gid);
    if (name === undefined) {
      name = this.#groupLines().find((it) => it.gid === gid)?.name ?? String(gid);
      this.#groupNames.set(gid, name);
    }
    return name;
  }

  // Like chown and docker: a name wins over a number that looks the same.
  #user(user: string): PasswdLine | undefined {
    const lines = this.#passwdLines();
    const id = toId(user);
    return lines.find((it) => it.name === user) ?? lines.find((it) => it.uid === id);
  }

  #groupsOf(name: string): number[] {
    return this.#groupLines()
      .filter((it) => it.members.includes(name))
      .map((it) => it.gid);
  }

  #passwdLines(): PasswdLine[] {
    this.#passwd ??= this.#fields('/etc/passwd').flatMap(([name = '', , uid, gid, , home = '']) => {
      const ids = { uid: toId(uid), gid: toId(gid) };
      if (ids.uid === undefined || ids.gid === undefined || !isName(name)) return [];
      return [{ name, uid: ids.uid, gid: ids.gid, home }];
    });
    return this.#passwd;
  }

  #groupLines(): GroupLine[] {
    this.#groups ??= this.#fields('/etc/group').flatMap(([name = '', , gid, members = '']) => {
      const id = toId(gid);
      return id === undefined || !isName(name) ? [] : [{ name, gid: id, members: members.split(',') }];
    });
    return this.#groups;
  }

  #fields(path: string): string[][] {
    let text: string;
    try {
      text = this.#read(path).slice(0, fileBytesMax);
    } catch {
      return [];
    }
    return text.split('\n').map((line) => line.split(':'));
  }
}

function isName(name: string): boolean {
  return name.length > 0 && name.length <= 256;
}

function homeOf(line: PasswdLine | undefined): string {
  return line?.home.startsWith('/') ? line.home : '/';
}

function toId(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const id = Number(text);
  return id <= idMax ? id : undefined;
}
