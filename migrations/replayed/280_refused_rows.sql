-- Rows that an object of the application refuses or alters: a foreign key, a trigger, an index, a check. Access must not depend on it.
-- The caller tries a refused change in three modes: the whole row; only the columns that decide access; only our bookkeeping, with a
-- denial, which all our policy functions and policies respect.

-- Returns the intents whose row gives too much access, or has another role or other permissions. (Too little access is safe, and waits
-- for the next try.)
create or replace function clerk_sync.unenforced(intents clerk_sync.intent[]) returns clerk_sync.intent[]
  language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  return array(
    select i from unnest(intents) i
      left join lateral (select true as able from clerk.user_details
                          where i.kind = 'user' and id = i.id and banned is false and deprovisioned is not true offset 0) u on true
      left join lateral (select * from clerk.organization_memberships where i.kind = 'membership' and id = i.id offset 0) m on true
      left join lateral (select true as stands from clerk.organizations
                          where i.kind = 'organization' and id = i.id and deleted_at is null offset 0) o on true
     where case i.kind
             when 'user' then u.able and not i.may
             when 'organization' then o.stands and not i.may
             else m.id is not null
                  and (not i.may or (m.organization_id, m.user_id, m.role, m.permissions)
                                    is distinct from (i.organization_id, i.user_id, i.role, i.permissions)) end);
end
$$;

-- Step: whether the rows say of access what was written. A trigger that keeps a row from being written, or alters it, says nothing
-- about it.
create or replace function clerk_sync.check_access(intents clerk_sync.intent[]) returns void
  language plpgsql stable set search_path = '' as $$
declare
  wrong constant clerk_sync.intent[] := clerk_sync.unenforced(intents);
begin
  if cardinality(wrong) > 0 then
    raise exception 'the row of a % does not say what was written', wrong[1].kind
      using errcode = 'CS004', schema = 'clerk',
            table = case wrong[1].kind when 'user' then 'user_details' when 'organization' then 'organizations' else 'organization_memberships' end;
  end if;
end
$$;

-- Step: rows that were refused before, and say now what they should.
create or replace function clerk_sync.lift_refusals(intents clerk_sync.intent[]) returns void
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  delete from clerk_sync.denials d using unnest(intents) i where d.kind = i.kind and d.id = i.id;
  delete from clerk_sync.pending_reads p using unnest(intents) i where p.kind = i.kind and p.id = i.id and p.reason = 'refused';
end
$$;

-- The mode `access`: ended rows go, and of the others what decides access is written, where it differs. A membership whose
-- successor is known becomes that in place, should something keep it from being removed.
create or replace function clerk_sync.write_access(intents clerk_sync.intent[]) returns void
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  update clerk.user_details d set banned = i.banned, deprovisioned = i.deprovisioned
    from unnest(intents) i
   where i.kind = 'user' and i.gone_at is null and d.id = i.id
     and (d.banned, d.deprovisioned) is distinct from (i.banned, i.deprovisioned);
  delete from clerk.user_details d using unnest(intents) i where i.kind = 'user' and i.gone_at is not null and d.id = i.id;
  update clerk.users u set deleted_at = pg_catalog.to_timestamp(i.gone_at::double precision / 1000)
    from unnest(intents) i where i.kind = 'user' and i.gone_at is not null and u.id = i.id and u.deleted_at is null;
  update clerk.organizations o set deleted_at = pg_catalog.to_timestamp(i.gone_at::double precision / 1000)
    from unnest(intents) i where i.kind = 'organization' and i.gone_at is not null and o.id = i.id and o.deleted_at is null;
  update clerk.organization_memberships m
     set id = i.id, role = i.role, permissions = i.permissions,
         created_at = pg_catalog.to_timestamp(i.created_at::double precision / 1000),
         updated_at = pg_catalog.to_timestamp(i.updated_at::double precision / 1000)
    from unnest(intents) i
   where i.kind = 'membership' and i.may and m.user_id = i.user_id and m.organization_id = i.organization_id and m.id <> i.id;
  update clerk.organization_memberships m set role = i.role, permissions = i.permissions
    from unnest(intents) i
   where i.kind = 'membership' and i.may and m.id = i.id and (m.role, m.permissions) is distinct from (i.role, i.permissions);
  delete from clerk.organization_memberships m using unnest(intents) i where i.kind = 'membership' and not i.may and m.id = i.id;
end
$$;

-- Step: the modes `access` and `deny`, of one change. What its rows do not say yet waits for another try. Returns what becomes of it.
create or replace function clerk_sync.write_refused(mode text, refused_by text[], intents clerk_sync.intent[], results clerk_sync.outcome[])
  returns clerk_sync.outcome[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  if mode = 'access' then
    perform clerk_sync.write_access(intents);
    perform clerk_sync.check_access(intents);
  else
    insert into clerk_sync.denials as d (kind, id, sqlstate, object)
      select i.kind, i.id, refused_by[1], refused_by[2] from unnest(clerk_sync.unenforced(intents)) i
      on conflict (kind, id) do update set sqlstate = excluded.sqlstate, object = coalesce(excluded.object, d.object);
  end if;
  delete from clerk_sync.denials d using unnest(intents) i
   where d.kind = i.kind and d.id = i.id
     and (mode = 'access' or cardinality(clerk_sync.unenforced(array[i]::clerk_sync.intent[])) = 0);
  insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason)
    select i.kind, i.id, i.organization_id, i.user_id, 'refused' from unnest(intents) i
    on conflict (kind, id) do update
      set reason = 'refused', requested_at = pg_catalog.now(), tries = case when p.reason = 'refused' then p.tries else 0 end,
          next_at = case when p.reason = 'refused' then p.next_at else excluded.next_at end,
          organization_id = coalesce(p.organization_id, excluded.organization_id), user_id = coalesce(p.user_id, excluded.user_id);
  return array(select row(n, case when outcome in ('applied', 'unchanged') then 'pending' else outcome end,
                          case when outcome in ('applied', 'unchanged') then 'refused' else reason end)::clerk_sync.outcome
                 from unnest(results));
end
$$;

revoke all on function clerk_sync.unenforced(clerk_sync.intent[]) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.check_access(clerk_sync.intent[]) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.write_access(clerk_sync.intent[]) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.lift_refusals(clerk_sync.intent[]) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.write_refused(text, text[], clerk_sync.intent[], clerk_sync.outcome[]) from public, anon, authenticated, service_role;
