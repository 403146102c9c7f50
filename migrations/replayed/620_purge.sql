-- Removes the emptied rows of users or organizations that were deleted longer ago than this. Tombstones stay: without one
-- a row is not touched, for a late webhook would bring it back. One row for each that is removed, and for each that something
-- of the application's holds: a foreign key, or a trigger that fails (it must name its schemas).
create or replace function clerk_sync.purge(kind text, ids text[], older_than_s bigint) returns table (purged_id text, held_by text)
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  before constant pg_catalog.timestamptz := pg_catalog.now() - older_than_s * interval '1 s';
  in_schema pg_catalog.text;
  in_table pg_catalog.text;
  by_constraint pg_catalog.text;
begin
  if older_than_s is null or older_than_s < 86400 then
    raise exception 'nothing that was deleted within a day is purged' using errcode = '22023';
  end if;
  -- No membership is written under a row that goes.
  perform clerk_sync.lock_writer();
  -- A deferred constraint would fail all of them in the end.
  set constraints all immediate;
  foreach purged_id in array ids loop
    begin
      held_by := null;
      if not exists (select from clerk_sync.versions v where v.kind = kind and v.id = purged_id and v.state = 'deleted')
         or exists (select from clerk_sync.denials d where d.kind = kind and d.id = purged_id) then
        continue;
      end if;
      if kind = 'user' then
        delete from clerk.users u where u.id = purged_id and u.deleted_at < before;
      else
        delete from clerk.organizations o where kind = 'organization' and o.id = purged_id and o.deleted_at < before;
      end if;
      if not found then
        continue;
      end if;
    exception when others then   -- running out of time is no such error
      get stacked diagnostics in_schema = schema_name, in_table = table_name, by_constraint = constraint_name;
      held_by := case when by_constraint <> '' then by_constraint || ' of ' || in_schema || '.' || in_table
                      else 'SQLSTATE ' || sqlstate end;
    end;
    return next;
  end loop;
end
$$;

-- The foreign keys of the application's tables on rows that a purge of this age would remove, and how many of their rows refer to
-- one. Null: they cannot be counted by the role that owns this schema.
create or replace function clerk_sync.purge_references(older_than_s bigint)
  returns table (parent text, constraint_name text, table_name text, column_name text, on_delete text, referencing bigint)
  language plpgsql volatile security definer set search_path = '' set row_security = off as $$
begin
  for parent, constraint_name, table_name, column_name, on_delete in
    select case c.confrelid when 'clerk.users'::pg_catalog.regclass then 'clerk.users' else 'clerk.organizations' end,
           c.conname, c.conrelid::pg_catalog.regclass::pg_catalog.text, a.attname,
           case c.confdeltype when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' when 'r' then 'restrict'
                              else 'no action' end
      from pg_catalog.pg_constraint c
      join pg_catalog.pg_class r on r.oid = c.conrelid
      join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
     where c.contype = 'f' and c.conparentid = 0   -- not once more for each partition
       and c.confrelid in ('clerk.users'::pg_catalog.regclass, 'clerk.organizations'::pg_catalog.regclass)
       and r.relnamespace <> 'clerk'::pg_catalog.regnamespace
     order by 1, 3, 2
  loop
    begin
      execute pg_catalog.format(
        'select count(*) from %s r where exists (select from %s p where p.id = r.%I and p.deleted_at < pg_catalog.now() - $1 * interval ''1 s'')',
        table_name, parent, column_name) into referencing using older_than_s;
    exception when insufficient_privilege then
      referencing := null;
    end;
    return next;
  end loop;
end
$$;

revoke all on function clerk_sync.purge(text, text[], bigint) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.purge_references(bigint) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.purge(text, text[], bigint) to clerk_sync_worker;
grant execute on function clerk_sync.purge_references(bigint) to clerk_sync_worker;
